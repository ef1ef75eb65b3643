"""What is new in a log: the events after one that is known, each with its payload.

They are asked for by their keys alone, so the columns by which other queries find events are not
read: a header is checked against its hash, and whoever follows compares each with the one before.
What is not as usual is read again with every column, which tells what is wrong with it.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events import UNREADABLE, Event, decode_page
from weightledger.ledger.sql import turns
from weightledger.ledger.sql.layout import SEQ_MASK
from weightledger.ledger.sql.turns import Question
from weightledger.ledger.store import payloads, rows
from weightledger.ledger.store.log_reading import in_order
from weightledger.ledger.store.model_rows import ModelRows

# What is told with a turn, at most: where there is more, it is asked for.
_TOLD = 64

_BEHIND = "FROM events WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT"
_NEWS = f"SELECT event_key, header, event_hash, payload {_BEHIND} ?"
_NEWS_TOLD = f"SELECT event_key, header, event_hash, payload {_BEHIND} {_TOLD}"
_EVERY_COLUMN = (
    f"{rows.SELECT_WITH_PAYLOAD} WHERE event_key BETWEEN ? AND ? ORDER BY event_key LIMIT ?"
)

News = list[tuple[Event, bytes | None]]


def question(of: ModelRows, seq: int) -> Question:
    """What asks for the first events after a seq along with a turn."""
    return Question(seq, _NEWS_TOLD, (of.key(seq + 1), of.key(SEQ_MASK)))


def news(of: ModelRows, seq: int, most: int, told: turns.News | None = None) -> News:
    """See `AppendLog.news`; `told` is what the question gave, after this seq or one before."""
    first, last = of.key(seq + 1), of.key(SEQ_MASK)
    events = _told(of, told, first)
    if events:
        return events
    read: News = []
    with of.database.look_ahead() as reading:
        with closing(reading.pages(_NEWS, (first, last), most)) as pages:
            for page in pages:
                events = _usual(of, page, first)
                if events is None:
                    break
                read += events
                first += len(page)
            else:
                return read
        rest = reading.execute(_EVERY_COLUMN, (first, last, most - len(read))).fetchall()
    return [*read, *_checked(of, rest, first)]


def _told(of: ModelRows, told: turns.News | None, first: int) -> News | None:
    """What came with a turn, from a key on; nothing where that may not be all, or is not usual."""
    if not told or len(told) >= _TOLD:
        return None
    page: list[Any] = [(int.from_bytes(key or b"", "big"), *rest) for key, *rest in told]
    return _usual(of, [row for row in page if row[0] >= first], first)


def _usual(of: ModelRows, page: Sequence[Any], first: int) -> News | None:
    """The events of rows that follow one on another from a key on, where all is well."""
    if not page:
        return []
    keys, headers, hashes, inline = zip(*page, strict=True)
    if set(map(type, headers)) != {bytes} or keys != tuple(range(first, first + len(page))):
        return None
    try:
        events = decode_page(headers)
        payloads.check_all(events, inline)
    except (*UNREADABLE, CorruptLedger):
        return None
    model, seq = of.model, first & SEQ_MASK
    for number, (event, stored) in enumerate(zip(events, hashes, strict=True), seq):
        if event.hash != stored or event.seq != number or event.model != model:
            return None
    return list(zip(events, inline, strict=True))


def _checked(
    of: ModelRows, page: Sequence[Any], first: int
) -> Iterable[tuple[Event, bytes | None]]:
    events = list(in_order(of, page, first))
    inline = [row[-1] for row in page]
    payloads.check_all(events, inline)
    return zip(events, inline, strict=True)
