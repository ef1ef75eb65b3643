"""Templates, filled in: every text is escaped, and no page may load anything foreign."""

import math
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse

from weightledger.api.loglines import short, summary
from weightledger.api.plain_text import plain
from weightledger.ledger.monitoring.metrics import METRICS

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

PAGES = (
    ("/", "Now"),
    ("/ui/timeline", "Timeline"),
    ("/ui/versions", "Versions"),
    ("/ui/compare", "Compare"),
    ("/ui/parameters", "Parameters"),
    ("/ui/metrics", "Metrics"),
    ("/ui/trials", "Trials"),
    ("/ui/fleet", "Fleet"),
    ("/ui/learning", "Learning"),
    ("/ui/audit", "Audit"),
    ("/ui/keys", "Keys"),
)
"""What can be gone to from everywhere: a path and its name."""

_DIGEST_SHOWN = 8
_TEXT_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Url:
    """Addresses below the path that the application is mounted at."""

    base: str

    def __call__(self, *parts: str | int, **query: Any) -> str:
        """A path below the base: its first part as it is, the others escaped."""
        first, *rest = parts
        path = str(first) + "".join("/" + quote(str(part), safe="") for part in rest)
        sent = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
        return self.base + path + ("?" + urlencode(sent, doseq=True) if sent else "")


def url_of(request: Request) -> Url:
    """Addresses for the pages of a request."""
    return Url(str(request.scope.get("root_path", "")).rstrip("/"))


def again(request: Request, *without: str, **query: Any) -> str:
    """The address of the same view, elsewhere in its list: without some of its query's fields."""
    left_out = {"after", "before", *without, *query}
    kept = [pair for pair in request.query_params.multi_items() if pair[0] not in left_out]
    path = request.url.path.removeprefix(url_of(request).base)
    sent = urlencode([*kept, *query.items()])
    return url_of(request)(path) + (f"?{sent}" if sent else "")


def page(request: Request, template: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
    """A page; links stand below the path that the application is mounted at."""
    facts = {"again": partial(again, request), "pages": PAGES, **facts}
    return HTMLResponse(fill(template, url_of(request), **facts), status, HEADERS)


def fill(template: str, url: Url, **facts: Any) -> str:
    """A template with what stands in it, all of it escaped."""
    return _environment().get_template(template).render(url=url, base=url.base, **facts)


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
        "moment": moment,
        "digest": lambda text: str(text or "")[:_DIGEST_SHOWN],
        "figure": figure,
        "plain": lambda text: clipped(plain(str(text))),
        "query": lambda url: urlsplit(url).query,
        "shell": shlex.quote,
        "short": short,
        "size": size,
        "unit": unit,
        "whole": plain,
        "summary": lambda item: clipped(plain(summary(item))),
    }
    return made


def unit(metric: str) -> str:
    """What a metric is measured in."""
    known = METRICS.get(metric)
    return known.unit if known else ""


def size(count: int) -> str:
    """Bytes, as people say them."""
    value = float(count)
    for name in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or name == "GiB":
            break
        value /= 1024
    return f"{value:.3g} {name}" if name != "B" else f"{count} B"


def clipped(text: str) -> str:
    """A text that fits a page."""
    return text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 1] + "…"


def ago(iso: str, now: datetime | None = None) -> str:
    """How long ago, in words, within a day; the date before that."""
    at = datetime.fromisoformat(iso)
    past = ((now or datetime.now(UTC)) - at).total_seconds()
    if past < 0 or past >= 86_400:
        return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if past < 60:
        return f"{past:.0f} s ago"
    return f"{past // 60:.0f} min ago" if past < 3600 else f"{past // 3600:.0f} h ago"


def clock(iso: str) -> str:
    """A time with its zone, whole."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(seconds: float) -> str:
    """A time in Unix seconds, as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def figure(value: float | None) -> str:
    """A number with three significant digits; a dash for what is not known."""
    if value is None:
        return "–"
    if math.isfinite(value) and (isinstance(value, int) or 1000 <= abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.3g}"
