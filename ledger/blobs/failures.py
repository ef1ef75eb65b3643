"""What object stores' refusals mean: obstore's errors to ledger errors, in one place.

obstore says most of it in words: the HTTP status, and the service's own code in the body.
"""

import contextlib
import re
from collections.abc import Iterator

from obstore import exceptions

from weightledger.ledger.errors import LedgerError, StorageError, StorageFull, StorageUnavailable

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE_END = "\n\nDebug source:"
_REQUEST = re.compile(r"Error performing (\w+ \w+://[^/\s]+)")
_BODY = re.compile(r"<\?xml.*", re.DOTALL)

_FULL_STATUS = "507"
_FULL_CODES = {
    "QuotaExceeded",
    "InsufficientStorage",
    "StorageQuotaExceeded",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_REFUSED_STATUS = {"401", "403"}
_REFUSED_CODES = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
}
_PASSING_STATUS = {"408", "409", "429"}


@contextlib.contextmanager
def explained(where: str, *, may_be_gone: bool = False) -> Iterator[None]:
    """Raise the ledger error for an error of obstore's; `where` is the store's URL.

    With `may_be_gone`, FileNotFoundError goes through: the object is gone, or the bucket is, which
    the listing or upload that follows then tells.
    """
    try:
        yield
    except FileNotFoundError as error:
        if may_be_gone:
            raise
        raise explain(error, where) from error
    except (exceptions.BaseError, OSError) as error:
        raise explain(error, where) from error


def explain(error: BaseException, where: str) -> LedgerError:
    """The ledger error for an error of obstore's; `where` is the store's URL."""
    text = str(error).partition(_MESSAGE_END)[0].strip()
    found = _STATUS.search(text)
    status = found[1] if found else None
    codes = set(_CODE.findall(text))
    if status == _FULL_STATUS or codes & _FULL_CODES:
        return StorageFull(f"no space is left in {where}; nothing was recorded")
    if any(name in text for name in _NO_BUCKET):
        return StorageError(f"{where} does not exist: create the bucket, or correct the URL")
    refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if refused or status in _REFUSED_STATUS or codes & _REFUSED_CODES:
        why = ", ".join(sorted(codes)) or f"status {status}"
        return StorageError(
            f"{where} refuses these credentials ({why}): they come from the environment,"
            " such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    short = _BODY.sub("", text.rpartition(" - ")[2]) + " ".join(sorted(codes))
    request = _REQUEST.search(text)
    if request:
        short = f"{request[1]}: {short}"
    if status is None or status >= "500" or status in _PASSING_STATUS:
        return StorageUnavailable(f"{where} does not answer: {short}")
    return StorageError(f"{where} failed: {short}")
