"""Policies: what a file may say, and that one which contradicts itself is refused by line."""

from pathlib import Path

import pytest

from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.policies import Goal, TrialRules, contradictions, preset
from weightledger.ledger.monitoring.policy_files import parsed, policy_of, rules_of

WHOLE = """\
base = "safe"
metrics = ["latency_ms", "failed", "memory_usage_mb"]
alpha = 0.005
minimum = 100
cool_down_s = 60
most = 3
window_s = 600
evaluation = "required"

[margins]
latency_ms = 0.05

[objectives]
latency_ms = { allowed = 0.01, limit = 250 }
failed = { allowed = 0.005 }

[trial]
share = 0.2
requests = 500
timeout_s = 900
promote = "proven"
on_timeout = "rollback"
updates = "refuse"
"""


def test_a_file_says_everything_that_a_policy_is(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(WHOLE)
    policy = policy_of(str(path))
    assert policy.name.startswith("ours@") and len(policy.name) == len("ours@") + 8
    assert policy.metrics == ("latency_ms", "failed", "memory_usage_mb")
    assert (policy.alpha, policy.minimum, policy.evaluation) == (0.005, 100, "required")
    assert (policy.cool_down_s, policy.most, policy.window_s) == (60.0, 3, 600.0)
    assert policy.margins == {"latency_ms": 0.05}
    assert policy.objectives == {"latency_ms": Goal(0.01, 250.0), "failed": Goal(0.005)}
    assert policy.trial == TrialRules(0.2, 500, 900.0, "proven", "rollback", "refuse")
    assert rules_of(policy)["objectives"]["latency_ms"] == {"allowed": 0.01, "limit": 250.0}


def test_what_a_file_does_not_say_is_as_in_its_base() -> None:
    policy = parsed('base = "strict"\n[trial]\nshare = 0.1\n', "x")
    strict = preset("strict")
    assert strict.trial is not None and policy.trial is not None
    assert policy.trial.on_timeout == strict.trial.on_timeout and policy.trial.share == 0.1
    assert policy.evaluation == "required" and policy.metrics == strict.metrics


def test_another_text_is_another_policy_by_name() -> None:
    assert parsed("alpha = 0.01\n", "x").name != parsed("alpha = 0.02\n", "x").name


WRONG = [
    ("alpha = 2\n", "line 1: alpha must be between 0 and 1, got 2.0"),
    ("\nalpha = true\n", "line 2: alpha must be a number, got True"),
    ("minimum = 1.5\n", "line 1: minimum must be a whole number"),
    ("speed = 1\n", "line 1: speed is no rule; there are base"),
    ('base = "off"\nalpha = 0.1\n', 'line 1: base "off" decides nothing'),
    ('base = "brave"\n', "line 1: base must be off, specification, safe, strict, got 'brave'"),
    ('metrics = ["speed"]\n', "line 1: metrics has 'speed'; there are accuracy"),
    ('metrics = ["accuracy"]\n[margins]\nlatency_ms = 0.1\n', "line 3: margins.latency_ms is the"),
    ("[margins]\n\nfailed = -1\n", "line 3: margins.failed must be 0 or more"),
    ("[objectives]\nlatency_ms = { allowed = 0.01 }\n", "line 2: objectives.latency_ms.limit is m"),
    ("[objectives]\nfailed = {allowed = 0.1, limit = 3}\n", "line 2: objectives.failed.limit does"),
    ("[objectives.failed]\nallowed = 0\n", "line 2: objectives.failed.allowed must be between"),
    ("[objectives]\nfailed = { limit = 3 }\n", "line 2: objectives.failed lacks allowed"),
    ("[trial]\nshare = 1\n", "line 2: trial.share must be between 0 and 1, got 1.0: both"),
    ("[trial]\nspare = 1\n", "line 2: trial.spare is no rule of a trial"),
    ("minimum = 90\n[trial]\nrequests = 20\n", "line 3: trial.requests 20 is below minimum 90"),
    ('base = "safe"\nmetrics = ["memory_usage_mb"]\n', "line 2: metrics has nothing that differs"),
    (
        'base = "strict"\n[trial]\non_timeout = "promote"\n',
        'line 3: trial.on_timeout "promote" promotes what promote = "proven" does not',
    ),
    ('[trial]\npromote = "soon"\n', "line 2: trial.promote must be 'unharmed' or 'proven'"),
    ("trial = 3\n", "line 1: trial must be a table, got 3"),
    ("alpha = nan\n", "line 1: alpha must be a number, got nan"),
    ("alpha = \n", "line 1"),
    ("alpha = 0.1\nalpha = 0.2\n", "line 2"),
]


@pytest.mark.parametrize(("text", "why"), WRONG, ids=[why for _, why in WRONG])
def test_a_policy_that_cannot_be_is_refused_with_the_line_and_the_reason(
    text: str, why: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parsed(text, "x")
    assert why in str(refused.value)


def test_a_file_that_is_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.toml"):
        policy_of(str(tmp_path / "nowhere.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match=r"binary\.toml"):
        policy_of(str(binary))


def test_presets_are_without_contradiction() -> None:
    for name in ("off", "specification", "safe", "strict"):
        assert policy_of(name) == preset(name) and contradictions(preset(name)) == []
