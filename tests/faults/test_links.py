"""A SQLite database by other names than its own: a link to it, a path that is relative."""

import logging
from pathlib import Path

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.sql.presence import announce, servers

DATA = torch.ones(2, 2)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A ledger whose model `m` has one weight, closed."""
    file = tmp_path / "real" / "ledger.db"
    file.parent.mkdir()
    with Ledger.open(f"sqlite:///{file}") as ledger:
        ledger.model("m", base={"w": torch.zeros(2, 2)})
    return file


def test_through_a_link_it_is_the_same_database_with_the_same_files_beside_it(
    real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(real)
    with (
        Ledger.open(f"sqlite:///{real}") as ledger,
        Ledger.open(f"sqlite:///{link}") as linked,
        caplog.at_level(logging.WARNING),
    ):
        for seq, one in enumerate((linked, ledger, linked), 1):
            assert one.model("m").apply(IncrementalUpdateRequest("w", DATA)).seq == seq
    assert caplog.text == ""
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["link.db"]


def test_a_server_is_found_by_the_link_and_by_the_file(real: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(real)
    for announced, asked in ((real, link), (link, real)):
        with announce(f"sqlite:///{announced}", "http://127.0.0.1:1"):
            (found,) = servers(f"sqlite:///{asked}")
            assert found.url == "http://127.0.0.1:1"


def test_a_program_may_change_its_folder(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(real.parent)
    with Ledger.open("sqlite:///ledger.db") as ledger:
        log = ledger.model("m")
        monkeypatch.chdir(tmp_path)
        assert log.apply(IncrementalUpdateRequest("w", DATA)).seq == 1
        assert [event.seq for event in log.events()] == [1, 0]
    assert not (tmp_path / "ledger.db").exists()
