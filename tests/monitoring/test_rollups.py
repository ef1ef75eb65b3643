"""What is summed up says what the values say: exactly, or within the sketch's 1 %."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.monitoring.rollups import Rollup, Where, merged, rolled_up
from weightledger.ledger.monitoring.sketches import RELATIVE_ACCURACY, Sketch

VALUES = np.random.default_rng(5).lognormal(2, 0.7, 3000)


def rollup(values: "np.ndarray | list[float]", seq: int = 4, start_us: int = 0) -> Rollup:
    return rolled_up("latency_ms", "engine", seq, start_us, start_us + 10, list(values))


def test_a_rollup_knows_count_mean_variance_and_extremes_exactly() -> None:
    one = rollup(VALUES)
    assert one.count == 3000
    assert one.mean == pytest.approx(VALUES.mean(), rel=1e-12)
    assert one.variance == pytest.approx(VALUES.var(ddof=1), rel=1e-9)
    assert (one.least, one.most) == (VALUES.min(), VALUES.max())
    assert math.isnan(rollup([3.0]).variance)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_within_one_percent(fraction: float) -> None:
    exact = np.quantile(VALUES, fraction, method="lower")
    assert rollup(VALUES).quantile(fraction) == pytest.approx(exact, rel=RELATIVE_ACCURACY * 1.001)


def test_parts_merged_are_the_whole() -> None:
    parts = [rollup(VALUES[i::7], seq=i, start_us=10 * i) for i in range(7)]
    whole, joined = rollup(VALUES), merged(parts)
    assert joined is not None
    assert (joined.first_seq, joined.last_seq, joined.start_us, joined.end_us) == (0, 6, 0, 70)
    assert (joined.count, joined.least, joined.most) == (whole.count, whole.least, whole.most)
    assert joined.total == pytest.approx(whole.total)
    assert dict(joined.sketch.bins()) == dict(whole.sketch.bins())
    assert parts[0].sketch.count == len(VALUES[0::7])  # merging changes none of them
    assert merged([]) is None


def test_how_many_are_over_a_limit() -> None:
    limit = 12.0
    near = np.sum(np.abs(VALUES / limit - 1) < 0.02)
    assert abs(rollup(VALUES).over(limit) - np.sum(np.greater(VALUES, limit))) <= near
    assert rollup([1.0, 1.0, 5.0]).over(2.0) == 1


FROZEN = (
    "0a0909fd4a815abf52f03f121a0a0b082c11000000000000f03f0a0b082a1100"
    "000000000000401a0d0a0b086e11000000000000f03f21000000000000f03f"
)
finite = st.floats(-1e300, 1e300, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=50))
def test_counting_many_at_once_is_counting_each(values: list[float]) -> None:
    each = Sketch()
    for value in values:
        each.add(value if abs(value) > 1e-300 else 0.0)
    at_once = Sketch.of(np.asarray(values))
    assert at_once.count == each.count == len(values)
    for fraction in (0.0, 0.5, 1.0):
        expected, got = each.quantile(fraction), at_once.quantile(fraction)
        # On the border of two bins the logarithm's last bit decides.
        assert got == pytest.approx(expected, rel=2.1 * RELATIVE_ACCURACY)


@given(st.lists(finite, min_size=1, max_size=50))
def test_what_is_stored_is_read_back(values: list[float]) -> None:
    sketch = Sketch.of(np.asarray(values))
    again = Sketch.decode(sketch.encode())
    assert dict(again.bins()) == dict(sketch.bins())
    assert again.count == len(values)


def test_bytes_that_were_stored_once_are_read_for_ever() -> None:
    sketch = Sketch.of(np.array([1.5, 1.5, 1.55, 0.0, -3.0]))
    assert sketch.encode().hex() == FROZEN
    assert Sketch.decode(bytes.fromhex(FROZEN)).count == 5


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        (Where(), True),
        (Where(metrics=["latency_ms"], sources=["engine"]), True),
        (Where(metrics=["queue_ms"]), False),
        (Where(sources=["pushed"]), False),
        (Where(min_seq=4, max_seq=4), True),
        (Where(min_seq=5), False),
        (Where(max_seq=3), False),
        (Where(since_us=109), True),
        (Where(since_us=110), False),
        (Where(until_us=100), False),
        (Where(until_us=101), True),
    ],
)
def test_what_is_asked_for(where: Where, passes: bool) -> None:
    assert (rollup([1.0], seq=4, start_us=100) in where) is passes
