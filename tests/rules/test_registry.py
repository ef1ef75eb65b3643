"""Finding, describing and adding rules."""

import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.rules.packages import install, spoil
from weightledger import PluginError, rules
from weightledger.api import cli
from weightledger.rules import RULES, RuleError, UnknownRule, registry
from weightledger.rules.protocol import Rule

IDS = [
    *("hebb", "oja", "sanger", "pair-stdp", "triplet-stdp", "bcm", "r-stdp", "mstdpet"),
    *("reinforce", "node-perturbation", "synaptic-scaling", "intrinsic-plasticity"),
    *("lms", "nlms", "rls", "ewc"),
    *("hebbian-delta", "stdp-delta", "bcm-delta", "reinforcement-delta"),
]


def test_ids_and_versions_are_what_events_of_this_release_name() -> None:
    assert {rule_id: RULES[rule_id].version for rule_id in RULES} == dict.fromkeys(IDS, 1)
    assert rules.rule_ids() == IDS


def test_an_id_taken_twice_or_malformed_is_refused() -> None:
    oja = RULES["oja"]
    with pytest.raises(ValueError, match="two rules have the id 'oja'"):
        registry.table((oja, RULES["hebb"], oja))
    for malformed in ("", "zweite-Ähnliche", "a\n", "x" * 256):
        with pytest.raises(ValueError, match="printable ASCII"):
            registry.table((type("Odd", (), {"id": malformed}),))  # type: ignore[arg-type]
    for ambiguous in ("a.b", "a/b"):  # their states would look like another rule's
        with pytest.raises(ValueError, match="dot or a slash"):
            registry.table((type("Odd", (), {"id": ambiguous}),))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule_id", IDS)
def test_a_description_says_all_there_is_to_know(rule_id: str) -> None:
    described = json.loads(json.dumps(asdict(rules.describe(rule_id))))
    rule = RULES[rule_id]()
    assert described["id"] == rule_id
    assert described["config"] == rules.config_of(rule)
    assert list(described["activities"]) == list(rule.activities)
    weight = torch.zeros(3) if rule.parameter == ("out",) else torch.zeros(3, 3)
    assert set(described["state"]) == set(rule.init(weight))
    assert len(described["summary"]) <= 90
    assert len(described["documentation"]) > 100


def test_the_page_of_the_rules_names_each_rule_and_each_field_of_the_config() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "rules.md").read_text()
    fields = [field.name for field in dataclasses.fields(rules.DTESNLearningConfig)]
    assert not [name for name in [*IDS, *fields] if f"`{name}`" not in page]


def test_shapes_are_described_by_name() -> None:
    described = rules.describe("r-stdp")
    assert described.parameter == "[out, in]"
    assert described.activities["pre_spikes"].startswith("[time, in] ")
    assert described.state == {
        "pre_trace": "[in]",
        "post_trace": "[out]",
        "eligibility": "[out, in]",
        "dopamine": "[]",
    }


def test_a_rule_is_made_from_its_id_and_config() -> None:
    rule = rules.make_rule("nlms", {"learning_rate": 1})
    assert rules.config_of(rule) == {"learning_rate": 1, "epsilon": 1e-6}
    for rule_id, config, error, message in (
        ("backprop", {}, UnknownRule, "known are hebb, oja"),
        ("oja", {"rate": 0.1}, RuleError, "it has learning_rate"),
        ("oja", {"learning_rate": "fast"}, RuleError, "is a float such as 0.01, got 'fast'"),
        ("oja", {"learning_rate": True}, RuleError, "got True"),
        ("oja", {"learning_rate": -0.1}, RuleError, "not be negative"),
        ("bcm", {"tau_theta": 0.0}, RuleError, "greater than 0"),
        ("rls", {"forgetting": 1.1}, RuleError, "at most 1"),
        ("pair-stdp", {"w_min": 2.0}, RuleError, "less than w_max"),
    ):
        with pytest.raises(error, match=message):
            rules.make_rule(rule_id, config)


def test_a_package_brings_a_rule_through_its_entry_point(installed: Path) -> None:
    install(installed, "decaying_rule", "decay")
    assert rules.rule_ids() == [*IDS, "decay"]
    rule: Rule = rules.make_rule("decay", {"learning_rate": 0.25})
    weight = torch.ones(2, 3)
    state = rules.init(rule, weight)
    assert int(state["version"]) == 3
    proposal = rules.propose(rule, weight, {"x": torch.ones(1, 3)}, state)
    assert torch.equal(proposal.delta, -0.25 * weight)
    with pytest.raises(RuleError, match="in=3"):
        rules.propose(rule, weight, {"x": torch.ones(1, 4)}, state)


def test_an_installed_rule_cannot_take_the_id_of_one_of_ours(installed: Path) -> None:
    install(installed, "usurping_rule", "oja")
    assert rules.rule_ids() == IDS
    assert rules.get_rule("oja") is RULES["oja"]


def test_a_package_is_loaded_when_its_rule_is_asked_for(installed: Path) -> None:
    install(installed, "decaying_rule", "decay")
    assert "decay" in rules.rule_ids()
    rules.make_rule("oja")
    with pytest.raises(UnknownRule, match="decay"):
        rules.get_rule("backprop")
    assert "decaying_rule" not in sys.modules
    rules.get_rule("decay")
    assert "decaying_rule" in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from dataclasses", "1 / 0\nfrom dataclasses", "ZeroDivisionError"),
        ("from dataclasses", "import absent\nfrom dataclasses", "absent"),
        ("class Decay", "class Other", "Decay"),
        ("summary = ", "summing = ", "summary"),
        ("learning_rate: float = 0.5", "learning_rate: float", "learning_rate"),
        ("@dataclass(frozen=True)\n", "", "dataclass"),
        ("id, version, summary = 'broken'", "id, version, summary = 'other'", "'other'"),
    ],
)
def test_a_broken_package_is_named_when_it_is_asked_for_and_in_nobodys_way(
    installed: Path, old: str, new: str, message: str
) -> None:
    install(installed, "broken_rule", "broken")
    install(installed, "decaying_rule", "decay")
    spoil(installed, "broken_rule", old, new)
    assert rules.rule_ids() == [*IDS, "broken", "decay"]
    assert rules.describe("decay").version == 3
    with pytest.raises(PluginError, match="'broken'") as caught:
        rules.make_rule("broken")
    assert message in str(caught.value)
    listed = CliRunner().invoke(cli.app, ["rules", "list", "--json"])
    assert listed.exit_code == 0, listed.output
    rows = {row["id"]: row for row in json.loads(listed.output)}
    assert message in rows["broken"]["unavailable"]
    assert rows["decay"]["unavailable"] is None and rows["decay"]["version"] == 3
    for form in ([], ["--csv"], ["-q"]):
        shown = CliRunner().invoke(cli.app, ["rules", "list", *form], env={"COLUMNS": "400"})
        assert shown.exit_code == 0 and "broken" in shown.output
        assert ("unavailable:" in shown.output) == (form != ["-q"])


def test_an_id_that_two_packages_bring_is_neithers(installed: Path) -> None:
    install(installed, "one_rule", "decay")
    install(installed, "another_rule", "decay")
    assert rules.rule_ids() == [*IDS, "decay"]
    with pytest.raises(PluginError, match="another_rule and one_rule"):
        rules.get_rule("decay")


@pytest.mark.parametrize("rule_id", rules.rule_ids())
def test_no_rule_takes_a_negative_rate_or_bounds_that_hold_nothing(rule_id: str) -> None:
    fields = rules.config_of(rules.make_rule(rule_id))
    if "learning_rate" in fields:
        with pytest.raises(RuleError, match="learning_rate must not be negative"):
            rules.make_rule(rule_id, {"learning_rate": -0.1})
    if "w_min" in fields:
        for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
            with pytest.raises(RuleError, match="w_min must be less than w_max"):
                rules.make_rule(rule_id, {"w_min": low, "w_max": high})


@pytest.mark.parametrize(
    ("rule_id", "field", "value", "says"),
    [
        ("rls", "ceiling", 0.5, "ceiling is at least 1, got 0.5"),
        ("intrinsic-plasticity", "mean", 1.0, "mean is within \\(-1, 1\\), got 1.0"),
        ("intrinsic-plasticity", "mean", -1.0, "mean is within"),
        ("intrinsic-plasticity", "mean", float("nan"), "mean is within"),
    ],
)
def test_a_range_has_its_ends(rule_id: str, field: str, value: float, says: str) -> None:
    with pytest.raises(RuleError, match=says):
        rules.make_rule(rule_id, {field: value})
