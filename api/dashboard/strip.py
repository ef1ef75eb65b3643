"""How many events there were over time, as a strip of bars that a range can be chosen on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.sax.saxutils import escape, quoteattr

from weightledger.ledger.events import ROLLED_BACK, UPDATE_REJECTED, VERSION_CREATED, Event
from weightledger.ledger.history.density import Density
from weightledger.ledger.history.positions import iso_time
from weightledger.ledger.history.reader import History
from weightledger.ledger.store import EventFilter

_IDLE = 6  # steps without an event that are drawn as a gap
_BAR, _GAP, _HEIGHT, _MARKS = 10, 26, 40, 8
_WIDEST = 2.4  # times its width in the picture that a bar has where there is room
_MOST_MARKED = 100  # events of a kind; where there are more, a mark would stand under every bar
_LOOKS = {ROLLED_BACK: "rolled-back", UPDATE_REJECTED: "refused", VERSION_CREATED: "version"}

Link = Callable[[str, str], str]
"""The address of the timeline between two times."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The picture, what stands below its ends and its middle, and how long a bar is."""

    picture: str
    ends: tuple[str, str]
    step: str
    events: int


def strip(history: History, since: int | None, until: int | None, link: Link) -> Strip:
    """The strip of a log between two times (UTC microseconds), all of it by default."""
    density = history.density(since, until)
    end = density.start_us + density.step_us * len(density.events)
    marks = _marks(history, density.start_us, end)
    return Strip(
        _picture(density, marks, link),
        (_short(density.start_us, density.step_us), _short(end, density.step_us)),
        _long(density.step_us),
        sum(density.events),
    )


def _marks(history: History, since: int, until: int) -> Mapping[str, Sequence[Event]]:
    """Events that are rare enough to be marked one by one, by kind."""
    marks = {}
    for kind in _LOOKS:
        where = EventFilter(kinds=[kind], since=since, until=until)
        events = history.events(where, limit=_MOST_MARKED + 1)
        marks[kind] = events if len(events) <= _MOST_MARKED else []
    return marks


def _picture(density: Density, marks: Mapping[str, Sequence[Event]], link: Link) -> str:
    most = max(density.events, default=0) or 1
    at = 0
    parts: list[str] = []
    places: dict[int, int] = {}
    for first, count in _stretches(density.events):
        since = density.start_us + first * density.step_us
        if count > 1:
            words = f"nothing for {_long(count * density.step_us)}"
            until = since + count * density.step_us
            parts.append(
                _bar(
                    link,
                    since,
                    until,
                    words,
                    at,
                    _GAP,
                    f'<path class="idle" d="M{at + 4} {_HEIGHT - 1}h{_GAP - 8}"/>',
                )
            )
            places |= {first + n: at + _GAP // 2 for n in range(count)}
            at += _GAP
            continue
        events = density.events[first]
        height = round((_HEIGHT - 4) * events / most + 2, 1) if events else 0
        words = f"{_moment(since)}, {_long(density.step_us)}: {events:,} events"
        inside = (
            f'<rect class="bar" x="{at + 1}" y="{_HEIGHT - height}" width="{_BAR - 2}"'
            f' height="{height}"/>'
        )
        parts.append(_bar(link, since, since + density.step_us, words, at, _BAR, inside))
        places[first] = at + _BAR // 2
        at += _BAR
    for row, (kind, events_of) in enumerate(marks.items()):
        steps = {(event.recorded_at - density.start_us) // density.step_us for event in events_of}
        parts += [
            f'<rect class="{_LOOKS[kind]}" x="{places[step] - 3}" width="6" height="2"'
            f' y="{_HEIGHT + 1 + 3 * row}"/>'
            for step in sorted(steps & places.keys())
        ]
    height = _HEIGHT + _MARKS + 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" viewBox="0 0 {at} {height}"'
        f' preserveAspectRatio="none" width="{at * _WIDEST:g}" height="{height}">'
        f"<title>Events over time</title>{''.join(parts)}</svg>"
    )


def _stretches(events: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The steps one by one, and runs of many without an event together: the first, how many."""
    at = 0
    while at < len(events):
        end = at
        while end < len(events) and not events[end]:
            end += 1
        if end - at >= _IDLE:
            yield at, end - at
            at = end
        else:
            yield at, 1
            at += 1


def _bar(link: Link, since: int, until: int, words: str, x: int, width: int, inside: str) -> str:
    ends = iso_time(since), iso_time(until - 1)
    return (
        f'<a href={quoteattr(link(*ends))} tabindex="-1" data-since="{ends[0]}"'
        f' data-until="{ends[1]}"><title>{escape(words)}</title><rect class="hit" x="{x}" y="0"'
        f' width="{width}" height="{_HEIGHT}"/>{inside}</a>'
    )


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _short(us: int, step_us: int) -> str:
    form = "%Y-%m-%d %H:%M" if step_us >= 60_000_000 else "%Y-%m-%d %H:%M:%S"
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime(form)


def _long(us: int) -> str:
    """A length of time in its largest two units."""
    seconds = us // 1_000_000
    parts = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
