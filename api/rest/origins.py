"""Which Host and Origin headers mean this very machine (RFC 3986, section 3.2; RFC 6454)."""

import re
from collections.abc import Sequence
from functools import lru_cache

from weightledger.ledger.http import is_loopback

_AUTHORITY = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z.-]+))(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"https?://(?P<authority>.*)", re.IGNORECASE)


@lru_cache(64)  # clients name the same one with each request
def is_loopback_authority(authority: str) -> bool:
    """Whether `host` or `host:port` is this machine: nothing before it, nothing after."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return False
    if match["six"] is not None:
        return ":" in match["six"] and is_loopback(match["six"])
    return is_loopback(match["name"])


def is_loopback_origin(origin: str) -> bool:
    """The same of an Origin header; `null`, which stands for anyone, is not."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and is_loopback_authority(match["authority"])


def refusal(hosts: Sequence[str], origins: Sequence[str]) -> str | None:
    """Why a server without a key does not answer a request with these headers, if it does not."""
    if len(hosts) != 1 or not is_loopback_authority(hosts[0]):
        shown = ", ".join(map(repr, hosts)) or "none"
        return f"Host {shown} is not loopback; set an API key to serve other names"
    if len(origins) > 1 or not all(map(is_loopback_origin, origins)):
        shown = ", ".join(map(repr, origins))
        return f"Origin {shown} may not use this server; set an API key to allow it"
    return None
