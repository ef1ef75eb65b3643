"""Folders by URL: `file:///path`, or a plain path."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from weightledger.ledger.blobs.folder import FolderBlobs
from weightledger.ledger.blobs.opener import PARAM
from weightledger.ledger.errors import InvalidRequest


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
                    param=PARAM,
                )
            path = unquote(parts.path)
        return Path(os.path.abspath(Path(path).expanduser())).as_uri()

    def open(self, url: str, *, create: bool) -> FolderBlobs:
        folder = Path(unquote(urlsplit(url).path))
        return FolderBlobs.create(folder) if create else FolderBlobs(folder)


FILE = Folders()
