"""Files that commands write."""

import os
from pathlib import Path

from weightledger.api.cli.files import replacing


def test_a_pipe_or_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as out:
        out.write_text("through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_file_is_replaced_only_when_all_went_well(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    with replacing(file) as out:
        out.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after" and list(tmp_path.iterdir()) == [file]
