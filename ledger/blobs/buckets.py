"""Buckets by URL: `s3://BUCKET/PREFIX` and its like. Endpoints and credentials come from the
environment."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from obstore.store import ObjectStore, from_url

from weightledger.ledger.blobs.failures import explained
from weightledger.ledger.blobs.objects import CLIENT_OPTIONS, RETRIES, ObjectBlobs
from weightledger.ledger.blobs.opener import PARAM
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.http import LOOPBACK


@dataclass(frozen=True, slots=True)
class Buckets:
    """`scheme://bucket/prefix`: `ledger.blobs.objects`; `allow_http` is the variable for it."""

    scheme: str
    allow_http: str

    def permanent(self, url: str) -> str:
        parts = urlsplit(url)
        if not parts.netloc:
            raise InvalidRequest(
                f"a bucket is given as {self.scheme}://BUCKET/PREFIX, not {url!r}", param=PARAM
            )
        prefix = "/".join(piece for piece in parts.path.split("/") if piece)
        return f"{self.scheme}://{parts.netloc}/{prefix}".rstrip("/")

    def open(self, url: str, *, create: bool) -> ObjectBlobs:
        plain = os.environ.get(self.allow_http, "").lower() in ("1", "true", "yes")
        options: Any = {**CLIENT_OPTIONS, "allow_http": plain}  # these replace the environment's
        options |= _proxy("http" if plain else "https")
        with explained(url):
            store: ObjectStore = from_url(url, client_options=options, retry_config=RETRIES)
        blobs = ObjectBlobs(store, url)
        if create:
            blobs.check()
        return blobs


def _proxy(scheme: str) -> dict[str, str]:
    """The environment's proxy, which requests to this machine do not take."""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy is None:
        return {}
    straight = [*filter(None, proxies.get("no", "").split(",")), *LOOPBACK]
    return {"proxy_url": proxy, "proxy_excludes": ",".join(straight)}


S3 = Buckets("s3", allow_http="AWS_ALLOW_HTTP")
GS = Buckets("gs", allow_http="GOOGLE_ALLOW_HTTP")
AZ = Buckets("az", allow_http="AZURE_ALLOW_HTTP")
