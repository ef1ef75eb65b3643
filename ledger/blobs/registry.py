"""Which blob stores there are: one table of ours, and those that installed packages bring.

A blob store is named by a URL that is permanent and holds no secret, since the ledger remembers it;
endpoints and credentials come from the environment.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from obstore.store import ObjectStore, from_url

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.failures import explained
from weightledger.ledger.blobs.folder import FolderBlobs
from weightledger.ledger.blobs.objects import CLIENT_OPTIONS, RETRIES, ObjectBlobs
from weightledger.ledger.errors import InvalidRequest

ENTRY_POINTS = "weightledger.blobs"

_PARAM = "blob_url"


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


@dataclass(frozen=True, slots=True)
class Folders:
    """`file:///path`, or a plain path: `ledger.blobs.folder`."""

    scheme: str = "file"

    def permanent(self, url: str) -> str:
        path = url
        if "://" in url:
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                raise InvalidRequest(
                    f"a folder is given as file:///absolute/path or as a path, not {url!r}",
                    param=_PARAM,
                )
            path = unquote(parts.path)
        return Path(os.path.abspath(Path(path).expanduser())).as_uri()

    def open(self, url: str, *, create: bool) -> FolderBlobs:
        folder = Path(unquote(urlsplit(url).path))
        return FolderBlobs.create(folder) if create else FolderBlobs(folder)


@dataclass(frozen=True, slots=True)
class Buckets:
    """`scheme://bucket/prefix`: `ledger.blobs.objects`; `allow_http` is the variable for it."""

    scheme: str
    allow_http: str

    def permanent(self, url: str) -> str:
        parts = urlsplit(url)
        if not parts.netloc:
            raise InvalidRequest(
                f"a bucket is given as {self.scheme}://BUCKET/PREFIX, not {url!r}", param=_PARAM
            )
        prefix = "/".join(piece for piece in parts.path.split("/") if piece)
        return f"{self.scheme}://{parts.netloc}/{prefix}".rstrip("/")

    def open(self, url: str, *, create: bool) -> ObjectBlobs:
        plain = os.environ.get(self.allow_http, "").lower() in ("1", "true", "yes")
        options: Any = {**CLIENT_OPTIONS, "allow_http": plain}  # these replace the environment's
        with explained(url):
            store: ObjectStore = from_url(url, client_options=options, retry_config=RETRIES)
        blobs = ObjectBlobs(store, url)
        if create:
            blobs.check()
        return blobs


def table(openers: Iterable[Opener]) -> dict[str, Opener]:
    """Openers by scheme; raises ValueError for a scheme that is malformed or taken twice."""
    found: dict[str, Opener] = {}
    for opener in openers:
        if not (opener.scheme.isalnum() and opener.scheme == opener.scheme.lower()):
            raise ValueError(f"scheme {opener.scheme!r} is not lower-case letters and digits")
        if opener.scheme in found:
            raise ValueError(f"two blob stores have the scheme {opener.scheme!r}")
        found[opener.scheme] = opener
    return found


BLOB_STORES: dict[str, Opener] = table(
    (
        Folders(),
        Buckets("s3", allow_http="AWS_ALLOW_HTTP"),
        Buckets("gs", allow_http="GOOGLE_ALLOW_HTTP"),
        Buckets("az", allow_http="AZURE_ALLOW_HTTP"),
    )
)
"""The blob stores that come with the ledger, by scheme."""


def get_opener(url: str) -> Opener:
    """What opens this URL, ours or an installed package's; InvalidRequest if there is none.

    A URL with a user, password, query or fragment is refused: it would be remembered, and shown.
    """
    if not url:
        raise InvalidRequest("a blob URL is not empty", param=_PARAM)
    scheme = url.partition("://")[0].lower() if "://" in url else Folders().scheme
    opener = BLOB_STORES.get(scheme) or _installed().get(scheme)
    if opener is None:
        known = ", ".join(f"{name}://…" for name in _installed())
        raise InvalidRequest(f"blob stores are {known} or a path, not {scheme}://…", param=_PARAM)
    parts = urlsplit(url)
    if "://" in url and ("@" in parts.netloc or parts.query or parts.fragment):
        raise InvalidRequest(
            "a blob URL names only the place: credentials and options come from the environment,"
            " such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
            param=_PARAM,
        )
    return opener


@cache
def _installed() -> dict[str, Opener]:
    others = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    return table([*BLOB_STORES.values(), *others])
