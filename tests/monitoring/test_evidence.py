"""The picture of a trial: bounds that hold at every moment, and agree with what is decided."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.api.test_command import inside
from tests.in_process import listening
from tests.monitoring.models import Users, decided, manager, update
from weightledger.ledger.errors import NotFound
from weightledger.ledger.monitoring.deciding import chronicle
from weightledger.ledger.monitoring.deciding.chronicle import Chronicle
from weightledger.ledger.monitoring.deciding.comparisons import Aspect
from weightledger.ledger.monitoring.deciding.intervals import Interval
from weightledger.ledger.monitoring.deciding.panels import side_by_side
from weightledger.ledger.monitoring.policies import preset


@pytest.mark.parametrize(("aspect", "effect"), [("typical", 0.2), ("event", 0.05)])
def test_bounds_close_in_on_the_effect_and_never_exclude_it(aspect: Aspect, effect: float) -> None:
    widths = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        interval = Interval(aspect, 0.5, 0.1, 0.01, 0.01)
        for _ in range(20):
            new = rng.random(250) < 0.5
            if aspect == "event":
                values = (rng.random(250) < 0.02 + effect * new).astype(float)
            else:
                values = rng.lognormal(3, 0.3, 250) * np.where(new, 1 + effect, 1)
            interval.observe(values, new)
            assert interval.lower is None or interval.lower < effect
            assert interval.upper is None or interval.upper > effect
        assert interval.lower is not None and interval.upper is not None
        widths.append(interval.upper - interval.lower)
    assert max(widths) < (0.5 if aspect == "typical" else 0.2)


def test_harm_is_shown_exactly_when_the_lower_bound_reaches_the_limit() -> None:
    """The picture and the decision are of the same bets: neither says what the other does not."""
    rng = np.random.default_rng(4)
    seen = Chronicle(side_by_side(preset("safe"), ["latency_ms"], 0.1), 0.5)
    for _ in range(16):
        new = rng.random(200) < 0.5
        seen.observe("latency_ms", rng.lognormal(3, 0.4, 200) * np.where(new, 1.25, 1), new)
        typical = next(one for one in seen.series() if one.aspect == "typical")
        last = typical.points[-1]
        reached = last.lower is not None and last.lower >= typical.limit
        assert reached == (last.statistic >= typical.needed)
    assert reached and seen.ruling().known == "harmful"
    assert last.estimate == pytest.approx(0.25, abs=0.1)


def test_a_long_trial_has_few_points_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronicle, "MOST_POINTS", 8)
    monkeypatch.setattr(chronicle, "MOST_VALUES", 3000)
    rng = np.random.default_rng(5)
    seen = Chronicle(side_by_side(preset("safe"), ["failed"], 0.1), 0.5)
    for count in range(1, 60):
        seen.observe("failed", np.zeros(60), rng.random(60) < 0.5)
        (one,) = seen.series()
        assert len(one.points) <= 8
        assert one.points[-1].n_old + one.points[-1].n_new == min(60 * count, 3000)
    assert not one.whole


def test_every_face_shows_what_a_trial_has_shown(tmp_path: Path) -> None:
    one = manager(tmp_path, policy="safe")
    try:
        event = update(one, "delay", 40.0)
        assert all(not series.points for series in one.trial_evidence(event.name))
        users = Users(one)
        users.ask(300)
        with listening(one) as url:
            status, out, _ = inside("trials", "evidence", event.name, "--json", "--url", url)
        assert status == 0 and '"metric": "latency_ms"' in out
        users.ask(2000)
        decided(one)
        assert one.log.live.head.kind == "rolled_back"
        with listening(one) as url:
            listed = [series for series in one.trial_evidence("update_1") if series.points]
            status, out, _ = inside("trials", "evidence", "update_1", "--csv", "--url", url)
            assert inside("trials", "evidence", "update_9", "--url", url)[0] == 1
        assert {series.metric for series in listed} == {"latency_ms", "failed"}
        assert status == 0 and len(out.splitlines()) == 1 + sum(len(s.points) for s in listed)
        with pytest.raises(NotFound, match="update_9"):
            one.trial_evidence("update_9")
    finally:
        one.close()


def test_a_trial_of_another_process_is_known_and_shows_nothing(tmp_path: Path) -> None:
    one = manager(tmp_path, policy="safe")
    event = update(one, "weight", 1.0)
    asyncio.run(one.abort_trial(event.name))
    one.close()
    again = manager(tmp_path, policy="safe")
    assert again.trial_evidence(event.name) == []
    again.close()
