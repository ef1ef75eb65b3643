"""Templates, filled in: every text is escaped, and no page may load anything foreign."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from weightledger.api.loglines import short, summary
from weightledger.api.plain_text import plain

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

_DIGEST_SHOWN = 8
_TEXT_SHOWN = 200


def page(request: Request, template: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
    """A page; links stand below the path that the application is mounted at."""
    base = str(request.scope.get("root_path", "")).rstrip("/")

    def url(*parts: str | int, **query: Any) -> str:
        """A path below the base: its first part as it is, the others escaped."""
        first, *rest = parts
        path = str(first) + "".join("/" + quote(str(part), safe="") for part in rest)
        sent = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
        return base + path + ("?" + urlencode(sent, doseq=True) if sent else "")

    def again(**query: Any) -> str:
        """The same view, elsewhere in its list."""
        kept = [
            (name, value)
            for name, value in request.query_params.multi_items()
            if name not in ("after", "before")
        ]
        return f"{base}{request.url.path.removeprefix(base)}?" + urlencode([*kept, *query.items()])

    shown = _environment().get_template(template).render(url=url, again=again, base=base, **facts)
    return HTMLResponse(shown, status_code=status, headers=HEADERS)


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("weightledger.api.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "ago": ago,
        "clock": clock,
        "date": date,
        "digest": lambda text: str(text or "")[:_DIGEST_SHOWN],
        "figure": figure,
        "plain": lambda text: clipped(plain(str(text))),
        "short": short,
        "whole": plain,
        "summary": lambda item: clipped(plain(summary(item))),
    }
    return made


def clipped(text: str) -> str:
    """A text that fits a page."""
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"


def ago(iso: str, now: datetime | None = None) -> str:
    """How long ago, in words, within a day; the date before that."""
    at = datetime.fromisoformat(iso)
    past = ((now or datetime.now(UTC)) - at).total_seconds()
    if past < 0 or past >= 86_400:
        return at.strftime("%Y-%m-%d %H:%M")
    if past < 60:
        return f"{past:.0f} s ago"
    return f"{past // 60:.0f} min ago" if past < 3600 else f"{past // 3600:.0f} h ago"


def clock(iso: str) -> str:
    """A time with its zone, whole."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S UTC")


def date(day: int) -> str:
    """A day counted from 1970 on."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()


def figure(value: float | None) -> str:
    """A number with three significant digits; a dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def names_of(versions: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    """Versions by the seq of the state that they name."""
    of: dict[int, list[Mapping[str, Any]]] = {}
    for version in versions:
        of.setdefault(version["seq"], []).append(version)
    return of
