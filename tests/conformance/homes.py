"""The blob stores under test, opened in this process or another, and ways to damage them."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlsplit

import obstore

from weightledger.ledger.blobs import BlobStore
from weightledger.ledger.blobs.folder import FolderBlobs
from weightledger.ledger.blobs.objects import ObjectBlobs
from weightledger.ledger.blobs.registry import get_opener
from weightledger.ledger.store.sql_store import SqlStore
from weightledger.ledger.tensors.digest import content_digest

# To a store in a bucket everything that exists is old, so that it is touched anew.
NOTHING_IS_FRESH = -2.0


def open_home(url: str, environment: Mapping[str, str] = MappingProxyType({})) -> BlobStore:
    """The blob store at a blob URL, or in the database at a database URL.

    `environment` is what another process needs, which does not have ours.
    """
    os.environ.update(environment)
    if url.startswith(("sqlite:", "postgresql:")):
        return SqlStore.open(url).blobs
    blobs = get_opener(url).open(url, create=True)
    if isinstance(blobs, ObjectBlobs):
        return ObjectBlobs(blobs._store, url, fresh_s=NOTHING_IS_FRESH)
    return blobs


class Home(Protocol):
    """One blob store, and its bytes behind its back."""

    url: str
    blobs: BlobStore
    environment: Mapping[str, str]

    def overwrite(self, digest: bytes, data: bytes) -> None:
        """Put other bytes in a blob's place."""

    def remove(self, digest: bytes) -> None:
        """Make a blob disappear."""


class DatabaseHome:
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self, url: str, store: SqlStore) -> None:
        self.url, self.store, self.blobs = url, store, store.blobs

    def overwrite(self, digest: bytes, data: bytes) -> None:
        with self.store._database.write() as execute:
            execute("UPDATE blobs SET size = ? WHERE digest = ?", (len(data), digest))
            execute("UPDATE blob_parts SET data = ? WHERE digest = ?", (data, digest))

    def remove(self, digest: bytes) -> None:
        with self.store._database.write() as execute:
            execute("DELETE FROM blobs WHERE digest = ?", (digest,))


class FolderHome:
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self, url: str) -> None:
        self.url, self.blobs = url, open_home(url)
        assert isinstance(self.blobs, FolderBlobs)

    def path(self, digest: bytes) -> Path:
        return Path(urlsplit(self.url).path) / digest.hex()[:2] / digest.hex()

    def overwrite(self, digest: bytes, data: bytes) -> None:
        self.path(digest).write_bytes(data)

    def remove(self, digest: bytes) -> None:
        self.path(digest).unlink()


class BucketHome:
    def __init__(self, url: str) -> None:
        self.url, self.blobs = url, open_home(url)
        assert isinstance(self.blobs, ObjectBlobs)
        self.objects = self.blobs._store
        self.environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}

    def paths(self, digest: bytes) -> list[str]:
        return [item["path"] for item in obstore.list(self.objects, digest.hex()).collect()]

    def overwrite(self, digest: bytes, data: bytes) -> None:
        for path in self.paths(digest):
            obstore.put(self.objects, path, data)

    def remove(self, digest: bytes) -> None:
        obstore.delete(self.objects, self.paths(digest))


def put_new(blobs: BlobStore, data: bytes) -> bytes:
    """Store some data; its digest."""
    digest = content_digest(data)
    blobs.put(digest, data)
    return digest


def moment_after(blobs: BlobStore) -> int:
    """A time after every touch so far and before every later one, by the store's own clock."""
    moment = max(item.touched_at for item in blobs.stored()) + 1
    while True:
        probe = put_new(blobs, b"probe %d" % time.monotonic_ns())
        times = {item.digest: item.touched_at for item in blobs.stored()}
        blobs.delete_unreferenced(probe, times[probe] + 1)
        if times[probe] >= moment:
            return moment
        time.sleep(0.01)
