"""What must not be said: passwords and tokens in URLs, connection strings and drivers' words.

`mask` runs where the text of an error is made (`ledger.errors`), where a database or a server is
named, and over every line of a server's log, so that nothing further on has to think of it.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote, unquote_plus, urlsplit

HIDDEN = "***"

# A password may hold anything but spaces when nobody escaped it, so it ends at the last @.
_USER_AND_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/?#@]*):[^\s'\"]*@", re.IGNORECASE)
_USER = re.compile(r"(\b(?!postgres)[a-z][a-z0-9+.-]*://)[^\s:/?#@]+@", re.IGNORECASE)

_NAMES = (
    r"[\w.%-]*(?:passw(?:or)?d|passphrase|pwd|secret|token(?!s)|signature|credential"
    r"|api[_-]?key|access[_-]?key)[\w.-]*|sig"
)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_NAMED = re.compile(
    rf"(?<![\w.%-])(['\"]?(?:{_NAMES})['\"]?\s*)"
    # A colon also ends a word of a sentence: only quotes make a value of what follows.
    rf"(=\s*(?:{_QUOTED}|(?!\*)[^\s&;,'\")\]}}]+)|:\s*(?:{_QUOTED}))",
    re.IGNORECASE,
)
_IS_SECRET = re.compile(_NAMES, re.IGNORECASE)
_BEARER = re.compile(r"(\bbearer\s+)(?!\*)[^\s'\",]+", re.IGNORECASE)

# Shorter ones stand in ordinary words; where they stand by name, the patterns find them.
_SHORTEST_LITERAL = 4


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with what is secret in it replaced by `***`.

    That is the password of a URL (and a lone user name, except PostgreSQL's, since others put
    tokens there), values of names such as `password` or `token` in queries, in libpq's
    `name=value` and in JSON, bearer tokens, and each of `secrets` wherever it stands.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_LITERAL:
            text = text.replace(secret, HIDDEN)
    # Each pattern is tried only where it can match: most lines of a log have nothing of the kind,
    # and going through one with all patterns takes longer than writing it.
    if "://" in text:
        text = _USER_AND_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    if "=" in text or "'" in text or '"' in text:
        text = _NAMED.sub(lambda match: f"{match[1]}{match[2][0]}{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", text) if "bearer" in text.lower() else text


def secrets_of(url: str) -> frozenset[str]:
    """The secrets that a URL holds, as they are written and as they are read, for `mask`."""
    written: set[str] = set()
    try:
        parts = urlsplit(url)
    except ValueError:  # a malformed IPv6 address: there is no telling what is what
        return frozenset()
    user_info, at, _ = parts.netloc.rpartition("@")
    if at:
        written.add(user_info.partition(":")[2])
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if _IS_SECRET.fullmatch(unquote_plus(name)):
            written.add(value)
    read = {unquote(value) for value in written} | {unquote_plus(value) for value in written}
    return frozenset(value for value in written | read if value)
