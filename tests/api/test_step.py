"""The view of the history at a terminal of its own: it walks, and leaves the terminal clean."""

from pathlib import Path

import pytest
import torch

from tests.api.test_command import inside
from tests.terminal import at_terminal
from weightledger import IncrementalUpdateRequest, Ledger

LEAVES = "\x1b[?1049l"  # the other screen, and the terminal is as it was


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    url = f"sqlite:///{tmp_path_factory.mktemp('step')}/l.db"
    with Ledger.open(url) as ledger:
        log = ledger.model("m", base={"first": torch.ones(3), "second": torch.ones(5)})
        log.apply(IncrementalUpdateRequest("first", 1.0, reason="because\x1b[2J"))
        log.apply(IncrementalUpdateRequest("second", 1.0, actor="ana"))
        log.rollback("update_1")
    return ("--database", url)


@pytest.mark.parametrize("keys", ["q", "\x03"], ids=["q", "ctrl-c"])
def test_it_walks_and_leaves_the_terminal_clean(at: tuple[str, str], keys: str) -> None:
    with at_terminal("step", "--at", "update_2", *at, lines=30, columns=140) as terminal:
        terminal.wait_for("update_2_")
        terminal.wait_for("1 of 2 tensors differ")
        terminal.wait_for("second")
        terminal.type("j")
        terminal.wait_for("because")
        terminal.wait_for("first")
        terminal.type("k")
        terminal.type("k")
        terminal.wait_for("rolled back to update_1")
        terminal.type(keys)
        assert terminal.end() == 0
        terminal.wait_for(LEAVES)
        assert terminal.settings_now() == terminal.settings
        assert "\x1b[2J" not in terminal.output.partition("because")[2][:40]
        assert "Traceback" not in terminal.output
        assert r"\n" not in terminal.output, "a line ends; it is no text that has to be shown"


def test_without_a_terminal_it_says_so(at: tuple[str, str], tmp_path: Path) -> None:
    status, _, err = inside("step", *at)
    assert status == 2
    assert "needs a terminal" in err
