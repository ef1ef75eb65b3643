"""Loops that are compiled when they are first used, and kept for the processes that come later.

numba keeps what it compiled by the source of the loop's own file. But a loop takes in others, and
numbers, from other files: where only one of those has changed, as by an update of this package, the
caller that was kept goes on with what it took in then, which may expect other room than it is given
now. So what is kept here is kept by all the code that loops are made of.
"""

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

Loop = TypeVar("Loop", bound=Callable[..., Any])

# Where they, and the numbers in them, stand; of a file elsewhere its own loops take none in.
_FOLDERS = ("tensors", "codecs")


class _Files(IndexDataCacheFile):
    """numba's files, each named by what it was compiled of and for."""

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._name(key), data)  # type: ignore[no-untyped-call]

    def load(self, key: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return self._load_data(self._name(key))  # type: ignore[no-untyped-call]
        return None

    def _name(self, key: Any) -> str:
        of = repr((numba.__version__, self._source_stamp, key))
        base = str(self._index_name).removesuffix(".nbi")
        return f"{base}.{hashlib.sha256(of.encode()).hexdigest()[:32]}.nbc"


class _Kept(FunctionCache):
    """What is kept of a loop, which is found by the sources of all."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)  # type: ignore[no-untyped-call]
        self._cache_file = _Files(  # type: ignore[no-untyped-call]
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def _index_key(self, *of: Any) -> Any:
        return (*super()._index_key(*of), sources())  # type: ignore[no-untyped-call]


@cache
def sources() -> str:
    """The SHA-256 of the code that loops are made of, in hex."""
    here = hashlib.sha256()
    for folder in _FOLDERS:
        for file in sorted((Path(__file__).parent.parent / folder).glob("*.py")):
            text = file.read_bytes()
            here.update(b"%s/%s %d\n" % (folder.encode(), file.name.encode(), len(text)))
            here.update(text)
    return here.hexdigest()


def compiled(loop: Loop) -> Loop:
    """Without Python's lock."""
    return _kept(numba.njit(nogil=True)(loop), loop)


def compiled_for_few(loop: Loop) -> Loop:
    """The same for so few lanes that they keep Python's lock: whoever lets go of it waits until
    another thread has had its turn."""
    return _kept(numba.njit()(loop), loop)


def _kept(made: Any, loop: Loop) -> Loop:
    with contextlib.suppress(RuntimeError):  # no folder to keep it in: each process compiles anew
        made._cache = _Kept(loop)
    return cast(Loop, made)
