"""Files that commands write: whole under their name, or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from weightledger.ledger.errors import StorageError


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to, which takes its name when all went well.

    A device or a pipe is written to itself: a file must not take its place. StorageError when the
    file cannot be written.
    """
    if out.exists() and not out.is_file():
        try:
            yield out
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error}") from error
        return
    if not out.parent.is_dir():  # told before the work whose result would be lost
        raise StorageError(f"cannot write {out}: there is no folder {out.parent}")
    partial = out.with_name(out.name + ".part")
    try:
        yield partial
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be out of reach
            partial.unlink(missing_ok=True)
