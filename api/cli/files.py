"""Files that commands write: whole under their name, or not there."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from weightledger.ledger.errors import InvalidRequest, StorageError


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the name `out` when all went well.

    A link goes on pointing to where it points, and the file there is replaced. To a device or a
    pipe the whole file is copied: nothing may take its place, and what writes safetensors renames
    files by itself. StorageError when the file cannot be written; InvalidRequest for `-`.
    """
    if str(out) == "-":
        raise InvalidRequest("--out - is no file: name one", param="out")
    file = out.resolve()
    if file.is_dir():
        raise StorageError(f"cannot write {out}: it is a folder")
    if not file.parent.is_dir():  # told before the work whose result would be lost
        raise StorageError(f"cannot write {out}: there is no folder {out.parent}")
    try:
        if file.exists() and not file.is_file():
            with tempfile.TemporaryDirectory() as folder:
                whole = Path(folder) / "whole"
                yield whole
                _copy(whole, file)
            return
        partial = file.with_name(file.name + ".part")
        try:
            yield partial
            partial.replace(file)
        finally:
            with contextlib.suppress(OSError):  # the folder itself may be out of reach
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error}") from error


def _copy(whole: Path, to: Path) -> None:
    with whole.open("rb") as source, to.open("wb") as sink:
        shutil.copyfileobj(source, sink)
