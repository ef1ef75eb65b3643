"""Files that commands write."""

import os
from pathlib import Path

import pytest

from weightledger.api.cli.files import replacing
from weightledger.ledger.errors import LedgerError


def test_a_pipe_or_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as out:
        out.write_text("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_not_even_a_writer_that_renames_takes_a_devices_place(tmp_path: Path) -> None:
    """As safetensors does: a state written to /dev/null by root took its place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as out:
        own = out.with_name("own")
        own.write_text("through")
        own.replace(out)
    assert os.read(reader, 100) == b"through" and pipe.is_fifo()
    os.close(reader)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as out:
        out.write_text("after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "after"


def test_what_is_no_file_is_told_before_the_work(tmp_path: Path) -> None:
    for out, why in (
        (tmp_path, "a folder"),
        (tmp_path / "no" / "f", "no folder"),
        (Path("-"), "-"),
    ):
        with pytest.raises(LedgerError, match=why), replacing(out):
            pytest.fail("the work was begun")


def test_a_file_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    with replacing(file) as out:
        out.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after" and list(tmp_path.iterdir()) == [file]
