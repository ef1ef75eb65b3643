"""Bells by which writers of a machine wake each other."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import Children
from weightledger.ledger.sql import bells
from weightledger.ledger.sql.bells import Bells
from weightledger.ledger.sql.boxes import Boxes

FOR_EVER_S = 10**6  # a test that waits for so long has failed

_ours: list[Bells] = []  # in a child: its bells, from one piece of work to the next


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"weightledger-{os.getuid()}"


@pytest.fixture
def ours() -> Iterator[Bells]:
    made = Bells("name")
    made.hang(3)
    yield made
    made.close()


@pytest.fixture
def others() -> Iterator[Bells]:
    made = Bells("name")
    made.hang(4)
    yield made
    made.close()


def test_who_is_rung_for_wakes_up_and_nobody_else(ours: Bells, others: Bells) -> None:
    ours.ring(4)
    assert not ours.wait(0)
    assert others.wait(FOR_EVER_S)
    assert not others.wait(0), "once"
    thread = threading.Thread(target=lambda: others.ring(3))
    thread.start()
    assert ours.wait(FOR_EVER_S), "also who waits already"
    thread.join()


def test_silence_is_for_what_rang_before(ours: Bells, others: Bells) -> None:
    for _ in range(3):
        others.ring(3)
    assert ours.silence()
    assert not ours.silence()
    others.ring(3)
    assert ours.wait(FOR_EVER_S)


def test_nobody_is_hurt_by_ringing_for_nobody_or_without_end(ours: Bells, others: Bells) -> None:
    others.ring(9)
    for _ in range(10_000):  # more than a socket takes
        others.ring(3)
    assert ours.wait(0)
    assert not ours.wait(0)


def test_another_name_has_other_bells(ours: Bells) -> None:
    stranger = Bells("another")
    stranger.ring(3)
    assert not ours.wait(0)
    stranger.close()


def _hang_in_child(temporary: str) -> None:
    tempfile.tempdir = temporary
    _ours.append(Bells("name"))
    _ours[0].hang(5)


def test_the_bell_of_one_that_was_killed_is_anothers(ours: Bells, folder: Path) -> None:
    children = Children(1)
    children.run(_hang_in_child, (str(folder.parent),))
    os.kill(children.processes[0].pid, signal.SIGKILL)
    children.end()
    left = sorted(one.name for one in folder.iterdir())
    assert left == ["name-3", "name-5"]
    ours.ring(5)  # nobody hears
    again = Bells("name")
    again.hang(5)
    ours.ring(5)
    assert again.wait(FOR_EVER_S)
    again.close()
    assert [one.name for one in folder.iterdir()] == ["name-3"]


def test_a_fork_leaves_the_bell_where_it_is(ours: Bells, others: Bells, folder: Path) -> None:
    pid = os.fork()
    if not pid:
        ours.forked()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    others.ring(3)
    assert ours.wait(FOR_EVER_S)


def test_there_are_none_where_others_may_enter_or_a_path_is_too_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bells.folder()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="alone"):
        Bells("name")
    folder.chmod(0o700)
    made = Bells("n" * 200)
    with pytest.raises(OSError, match="too long"):
        made.hang(1)
    made.ring(1)
    made.close()


def test_who_cannot_be_rung_for_has_a_box_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bells, "folder", lambda: tmp_path / ("n" * 200))
    boxes = Boxes(tmp_path / "boxes", lambda: 0o600)
    assert boxes.put(b"command") is not None
    assert boxes.wait(FOR_EVER_S) is None, "nobody waits for it"
    boxes.ring()
    boxes.close()
