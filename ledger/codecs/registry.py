"""Which codecs there are: one table of ours, and those that installed packages bring."""

from collections.abc import Iterable
from functools import cache
from typing import Protocol

import numpy as np

from weightledger.ledger.codecs.delta import Delta
from weightledger.ledger.codecs.dense import Dense
from weightledger.ledger.codecs.sparse import Sparse
from weightledger.ledger.codecs.unchanged import Unchanged
from weightledger.ledger.errors import CorruptLedger, PluginError
from weightledger.ledger.plugins import load_plugin, plugin_ids

ENTRY_POINTS = "weightledger.codecs"


class Codec(Protocol):
    """One way of writing a delta; see the contract in `ledger.codecs`."""

    @property
    def id(self) -> str:
        """Permanent name: 1 to 255 printable ASCII characters, ending in a version."""

    def encode(self, delta: Delta) -> bytes:
        """The bytes of `delta`."""

    def decode(
        self, data: bytes | memoryview, count: int, dtype: np.dtype[np.unsignedinteger]
    ) -> Delta:
        """The delta of `count` lanes of `dtype` in `data`; raises CorruptLedger."""


def table(codecs: Iterable[Codec]) -> dict[str, Codec]:
    """Codecs by id; raises ValueError for an id that is malformed or taken twice."""
    found: dict[str, Codec] = {}
    for codec in codecs:
        if not (codec.id.isascii() and codec.id.isprintable() and 0 < len(codec.id) < 256):
            raise ValueError(f"codec id {codec.id!r} is not 1 to 255 printable ASCII characters")
        if codec.id in found:
            raise ValueError(f"two codecs have the id {codec.id!r}")
        found[codec.id] = codec
    return found


CODECS: dict[str, Codec] = table((Unchanged(), Sparse(), Dense()))
"""The codecs that come with the ledger."""


@cache
def get_codec(codec_id: str) -> Codec:
    """The codec with this id, ours or an installed package's.

    Raises CorruptLedger if there is none, PluginError if it cannot be loaded or has another id: the
    bytes at hand cannot be read.
    """
    ours = CODECS.get(codec_id)
    if ours is not None:
        return ours
    codec: Codec | None = load_plugin(ENTRY_POINTS, codec_id)
    if codec is None:
        known = ", ".join([*CODECS, *plugin_ids(ENTRY_POINTS)])
        raise CorruptLedger(f"no codec {codec_id!r} is installed; known are {known}")
    if codec.id != codec_id:
        raise PluginError(f"the entry point of codec {codec_id!r} brings {codec.id!r}")
    return codec
