"""Blobs as files of a local folder.

    FOLDER/weightledger-blobs     says that this is a blob store, and its format
    FOLDER/ledgers/ID             a ledger that keeps blobs here: `ledger.blobs.tenants`
    FOLDER/lock                   held shared to touch or publish a blob, alone to delete one
    FOLDER/tmp/DIGEST.RANDOM      being written; when its writer was killed, `sweep` removes it
    FOLDER/00 … FOLDER/ff         made beforehand
    FOLDER/ab/abcd…               a blob, by its digest in hex; its mtime says when it was touched

A file is written under its temporary name, synced, renamed, and its folder synced: after a crash
at any instruction a blob is there whole or not at all. Reading takes no lock. The lock is the
operating system's, so it goes with a process that dies.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightledger.ledger import permissions
from weightledger.ledger.blobs import (
    Buffer,
    Stored,
    absent,
    as_view,
    cut_short,
    damaged,
    require_size,
)
from weightledger.ledger.blobs.tenants import NOTES, Tenant, tenant_named
from weightledger.ledger.errors import (
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from weightledger.ledger.tensors.digest import DIGEST_BYTES, content_digest

MARKER = "weightledger-blobs"
TEMPORARY = "tmp"

_FORMAT = "1\n"
_LOCK = "lock"
_PATIENCE_S = 30.0
_POLL_S = 0.01
_FANS = tuple(f"{number:02x}" for number in range(256))
_WRITE_BYTES = 16 * 1024 * 1024  # of one write call
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_GONE = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)


class FolderBlobs:
    """`ledger.blobs.BlobStore` over a folder; any number of threads and processes may share it.

    The folder has to be on one file system with working `flock` and `rename`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, folder: Path) -> "FolderBlobs":
        """A store in a folder that is empty, new, or one already; StorageError for any other."""
        made = cls(folder)
        with made._explained():
            permissions.make_folder(folder)
            permissions.warn_if_open(folder)
            if not (folder / MARKER).exists():
                made._lay_out()
            made._require_marker()
        return made

    def put(self, digest: bytes, data: Buffer) -> None:
        """Store `data` under its digest; a blob that exists is touched, not written again.

        A file of another length is replaced.
        """
        view = as_view(data)
        path = self._path(digest)
        with self._explained():
            if self._touch(path, len(view)):
                _sync(path.parent)  # its writer may not have come to that yet
                return
            self._publish(digest, view)

    def rewrite(self, digest: bytes, data: Buffer) -> None:
        """Store `data` in place of what is stored under its digest."""
        with self._explained():
            self._publish(digest, as_view(data))

    def get(self, digest: bytes) -> bytes:
        """The bytes of a blob; CorruptLedger when it is missing or does not match."""
        with self._explained():
            try:
                data = self._path(digest).read_bytes()
            except FileNotFoundError:
                self._require_marker()
                raise absent(digest) from None
        if content_digest(data) != digest:
            raise damaged(digest)
        return data

    def read_into(self, digest: bytes, out: NDArray[np.uint8], *, check: bool = True) -> None:
        """Fill `out`, whose length is the blob's; see `BlobStore.read_into`."""
        with self._explained():
            try:
                file = self._path(digest).open("rb", buffering=0)
            except FileNotFoundError:
                self._require_marker()
                raise absent(digest) from None
            with file:
                require_size(digest, os.fstat(file.fileno()).st_size, len(out))
                at, view = 0, as_view(out)
                while at < len(view) and (read := file.readinto(view[at:])):
                    at += read
        if at != len(out) or (check and content_digest(out) != digest):
            raise damaged(digest)

    def read_range(self, digest: bytes, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of a blob; see `BlobStore.read_range`."""
        with self._explained():
            try:
                file = self._path(digest).open("rb", buffering=0)
            except FileNotFoundError:
                self._require_marker()
                raise absent(digest) from None
            with file:
                file.seek(start)
                data = bytearray(stop - start)
                at, view = 0, memoryview(data)
                while at < len(view) and (read := file.readinto(view[at:])):
                    at += read
        if at != len(data):
            raise cut_short(digest, stop)
        return bytes(data)

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that are not stored; those that are get touched."""
        unseen: set[bytes] = set()
        folders: set[Path] = set()
        with self._explained():
            for digest in sorted(set(digests)):
                path = self._path(digest)
                if self._touch(path):
                    folders.add(path.parent)
                else:
                    unseen.add(digest)
            for folder in folders:
                _sync(folder)
            if unseen:
                self._require_marker()
        return unseen

    @contextlib.contextmanager
    def held(self, digests: Iterable[bytes]) -> Iterator[set[bytes]]:
        """Hold the folder's lock, shared, which a collector needs alone."""
        with contextlib.ExitStack() as stack:
            with self._explained():
                stack.enter_context(self._locked(fcntl.LOCK_SH))
                missing = {digest for digest in set(digests) if not self._touch(self._path(digest))}
            yield missing

    def now(self) -> int:
        """The time by the file system's clock, in UTC microseconds."""
        with self._explained():
            probe = self._temporary("clock")
            try:
                _write(probe, memoryview(b""))
                return _touched_at(probe.stat())
            finally:
                probe.unlink(missing_ok=True)

    def stored(self) -> Iterator[Stored]:
        """Every blob by digest, one sub-folder at a time; files with other names are left out."""
        with self._explained():
            self._require_marker()
        for name in _FANS:
            with self._explained():
                page = sorted(_blobs_in(self.folder / name))
            yield from page

    def delete_unreferenced(
        self, digest: bytes, older_than: int, *, last_touched: int | None = None
    ) -> bool:
        """Delete a blob unless it was touched since; see `BlobStore.delete_unreferenced`.

        While the lock is held, nobody touches or publishes a blob, nor relies on one. StorageBusy
        when writers do not let it go.
        """
        path = self._path(digest)
        with self._explained(), self._locked_alone():
            try:
                touched_at = _touched_at(path.stat())
                if touched_at >= older_than or last_touched not in (None, touched_at):
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def sweep(self, older_than: int) -> int:
        """Delete the temporary files that nobody has written to since `older_than`."""
        swept = 0
        with self._explained():
            for path in sorted((self.folder / TEMPORARY).iterdir()):
                with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                    if _touched_at(path.stat()) < older_than:
                        path.unlink()
                        swept += 1
        return swept

    def settle(self, tenant: Tenant) -> None:
        """Note that a ledger keeps blobs here; see `Shareable.settle`."""
        note = self._note(tenant)
        with self._explained():
            if note.exists():
                return
            self._require_marker()
            permissions.make_folder(note.parent)
            temporary = self._temporary(tenant.id)
            _write(temporary, memoryview(f"{tenant.name}\n".encode()))
            os.replace(temporary, note)
            _sync(note.parent)
            _sync(self.folder)

    def tenants(self) -> list[Tenant]:
        """Whom there are notes of."""
        with self._explained():
            self._require_marker()
            notes = sorted((self.folder / NOTES).glob("*"))
            found = [tenant_named(note.name, note.read_text("utf-8")) for note in notes]
        return [tenant for tenant in found if tenant is not None]

    def leave(self, tenant: Tenant) -> None:
        """Take a note away; there may be none."""
        with self._explained():
            self._note(tenant).unlink(missing_ok=True)

    def note(self, tenant: Tenant) -> str:
        """Where the note of a ledger lies, for people."""
        return str(self._note(tenant))

    def _note(self, tenant: Tenant) -> Path:
        return self.folder / NOTES / tenant.id

    def _lay_out(self) -> None:
        """Make everything but blobs, the marker last: whoever sees it needs to make nothing."""
        names = {path.name for path in self.folder.iterdir()}
        if not names <= {TEMPORARY, _LOCK, *_FANS}:
            raise StorageError(
                f"folder {self.folder} holds other files: blobs need a folder of their own"
            )
        for name in (TEMPORARY, *_FANS):
            permissions.make_folder(self.folder / name)
        temporary = self._temporary(MARKER)
        _write(temporary, memoryview(_FORMAT.encode()))
        _sync(self.folder)
        os.replace(temporary, self.folder / MARKER)
        _sync(self.folder)
        _sync(self.folder.parent)

    def _publish(self, digest: bytes, view: memoryview) -> None:
        """Write a blob's file, durable under its name when this returns."""
        path = self._path(digest)
        self._require_marker()
        temporary = self._temporary(digest.hex())
        try:
            _write(temporary, view)
            with self._locked(fcntl.LOCK_SH):
                os.utime(temporary)  # writing may have taken long
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # `sweep` finds it
                temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def _touch(self, path: Path, size: int | None = None) -> bool:
        """Whether the blob is there (and has this size); if so, it now counts as touched."""
        try:
            found = path.stat()
            if size is not None and found.st_size != size:
                return False
            with self._locked(fcntl.LOCK_SH):
                os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, permissions.PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked_alone(self) -> Iterator[None]:
        """The lock for a collector, who waits for writers, but not for one that is suspended."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, permissions.PRIVATE_FILE)
        try:
            until = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StorageBusy(
                            f"a writer holds blob folder {self.folder}: nothing more was deleted"
                        ) from None
                    time.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.folder / name[:2] / name

    def _temporary(self, name: str) -> Path:
        return self.folder / TEMPORARY / f"{name}.{secrets.token_hex(8)}"

    def _require_marker(self) -> None:
        """Tell a folder without some blob from one that is not there, unmounted say."""
        try:
            found = (self.folder / MARKER).read_text()
        except FileNotFoundError:
            raise StorageUnavailable(
                f"folder {self.folder} is not a blob store: it has no file {MARKER}."
                " Was it moved, or is a file system not mounted?"
            ) from None
        if found != _FORMAT:
            raise StorageError(f"folder {self.folder} has blob format {found.strip()!r}, not 1")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The ledger's errors for those of the file system."""
        try:
            yield
        except OSError as error:
            where = f"blob folder {self.folder}"
            if error.errno in _FULL:
                raise StorageFull(f"no space is left in {where}; nothing was recorded") from error
            if error.errno in _READ_ONLY:
                raise StorageError(f"{where} does not allow this: {error}") from error
            if error.errno in _GONE:
                raise StorageUnavailable(f"{where} does not answer: {error}") from error
            raise StorageError(f"{where} failed: {error}") from error


def _write(path: Path, view: memoryview) -> None:
    """A new file with these bytes, on disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions.PRIVATE_FILE)
    try:
        at = 0
        while at < len(view):
            at += os.write(descriptor, view[at : at + _WRITE_BYTES])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blobs_in(folder: Path) -> Iterator[Stored]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(entry.name) != 2 * DIGEST_BYTES or not entry.name.startswith(folder.name):
                continue
            with contextlib.suppress(FileNotFoundError, ValueError):  # deleted; not a digest
                found = entry.stat()
                yield Stored(bytes.fromhex(entry.name), found.st_size, _touched_at(found))


def _touched_at(found: os.stat_result) -> int:
    return found.st_mtime_ns // 1000
