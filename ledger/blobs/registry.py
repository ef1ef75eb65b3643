"""Which blob stores there are: one table of ours, and those that installed packages bring.

A blob store is named by a URL that is permanent and holds no secret, since the ledger remembers it;
endpoints and credentials come from the environment. What opens a scheme is imported when a URL of
that scheme is met. Other packages add theirs through the entry-point group `weightledger.blobs`: an
entry's name is the scheme, its object an `Opener`.
"""

from functools import cache
from pkgutil import resolve_name
from urllib.parse import urlsplit

from weightledger.ledger.blobs.opener import PARAM, Opener
from weightledger.ledger.errors import InvalidRequest, PluginError
from weightledger.ledger.plugins import load_plugin, plugin_ids

ENTRY_POINTS = "weightledger.blobs"

BLOB_STORES = {
    "file": "weightledger.ledger.blobs.folders:FILE",
    "s3": "weightledger.ledger.blobs.buckets:S3",
    "gs": "weightledger.ledger.blobs.buckets:GS",
    "az": "weightledger.ledger.blobs.buckets:AZ",
}
"""What opens each scheme that comes with the ledger."""


def get_opener(url: str) -> Opener:
    """What opens this URL, ours or an installed package's; InvalidRequest if there is none.

    A URL with a user, password, query or fragment is refused: it would be remembered, and shown.
    """
    if not url:
        raise InvalidRequest("a blob URL is not empty", param=PARAM)
    scheme = url.partition("://")[0].lower() if "://" in url else "file"
    opener = _opener(scheme)
    if opener is None:
        known = ", ".join(f"{name}://…" for name in [*BLOB_STORES, *plugin_ids(ENTRY_POINTS)])
        raise InvalidRequest(f"blob stores are {known} or a path, not {scheme}://…", param=PARAM)
    parts = urlsplit(url)
    if "://" in url and ("@" in parts.netloc or parts.query or parts.fragment):
        raise InvalidRequest(
            "a blob URL names only the place: credentials and options come from the environment,"
            " such as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
            param=PARAM,
        )
    return opener


@cache
def _opener(scheme: str) -> Opener | None:
    opener: Opener | None
    if scheme in BLOB_STORES:
        opener = resolve_name(BLOB_STORES[scheme])
        return opener
    opener = load_plugin(ENTRY_POINTS, scheme)
    if opener is not None and opener.scheme != scheme:
        raise PluginError(f"the entry point of blob store {scheme!r} opens {opener.scheme!r}")
    return opener
