"""The port to a kind of blob store: what a URL's scheme stands for."""

from typing import Protocol

from weightledger.ledger.blobs import BlobStore

PARAM = "blob_url"
"""The field that errors about a blob URL name."""


class Opener(Protocol):
    """Opens the stores of one URL scheme."""

    @property
    def scheme(self) -> str:
        """What stands before `://`, lower case."""

    def permanent(self, url: str) -> str:
        """The one way to write this URL; InvalidRequest when it cannot name a store."""

    def open(self, url: str, *, create: bool) -> BlobStore:
        """The store at a permanent URL; with `create`, it is there or made, or an error says why.

        Without, nothing is read or written yet.
        """
