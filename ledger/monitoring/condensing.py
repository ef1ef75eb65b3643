"""Fewer rollups of the same values: neighbours in seq are put together, older spans get wider.

A model that is updated a hundred times a second has a thousand states in ten seconds, and would
have as many rows. So a span of time has at most `MOST_RANGES` rollups of a metric from a source;
where more states were live, those next to each other share one.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from weightledger.ledger.monitoring.rollups import Rollup, merged
from weightledger.ledger.monitoring.samples import Source

MOST_RANGES = 16

SECOND_US = 1_000_000
SPAN_US = 10 * SECOND_US
"""How long one span is, at first; spans begin at multiples of it."""

WIDER = (
    (300 * SECOND_US, 2 * 3600 * SECOND_US),
    (3600 * SECOND_US, 48 * 3600 * SECOND_US),
)
"""How long spans are that ended a while ago, and what a while is."""


def condensed(rollups: Iterable[Rollup], start_us: int, end_us: int) -> list[Rollup]:
    """Rollups of any metrics, sources and replicas as at most `MOST_RANGES` of each, of one
    span.

    Those whose seqs overlap are one; counts, sums and extremes stay exact.
    """
    groups: dict[tuple[str, Source, str | None], list[Rollup]] = defaultdict(list)
    for one in rollups:
        groups[one.metric, one.source, one.replica].append(one)
    result = []
    for group in groups.values():
        parts = apart(sorted(group, key=lambda one: (one.first_seq, one.last_seq)))
        size = -(-len(parts) // MOST_RANGES)
        for at in range(0, len(parts), size):
            whole = merged(one for part in parts[at : at + size] for one in part)
            assert whole is not None
            result.append(replace(whole, start_us=start_us, end_us=end_us))
    return result


def apart(ordered: list[Rollup]) -> list[list[Rollup]]:
    """Rollups in order of their first seq, in groups whose ranges of seqs do not overlap."""
    groups: list[list[Rollup]] = []
    last = -1
    for one in ordered:
        if groups and one.first_seq <= last:
            groups[-1].append(one)
        else:
            groups.append([one])
        last = max(last, one.last_seq)
    return groups
