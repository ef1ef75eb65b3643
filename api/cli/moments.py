"""Times as people say them: `1h`, `2d`, `yesterday`, or ISO 8601."""

import contextlib
import re
from datetime import UTC, datetime, timedelta

from weightledger.api.server.sources import FlagError
from weightledger.ledger.history.positions import parse_time

_AGO = re.compile(r"([0-9]{1,6}) ?(s|m|h|d|w)(?: ago)?")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(option: str, text: str | None, now: datetime | None = None) -> str | None:
    """An ISO 8601 time in UTC; FlagError says what was expected. `yesterday` and `today` are
    when those days began, in UTC."""
    if text is None:
        return None
    now = now or datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    word = text.strip().lower()
    at: datetime | None = None
    if match := _AGO.fullmatch(word):
        with contextlib.suppress(OverflowError):
            at = now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    elif word in ("today", "yesterday"):
        at = today - timedelta(days=word == "yesterday")
    if at is not None:
        return at.isoformat().replace("+00:00", "Z")
    if parse_time(text) is None:
        raise FlagError(
            f"{option} takes 30m, 1h, 2d, yesterday or a time such as 2026-11-22T10:00:00Z, "
            f"got {text!r}"
        )
    return text
