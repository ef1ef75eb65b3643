"""Bad input changes nothing and says what was expected."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rules.bridge import IN, OUT, Integrate, observed, run, samples
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    InvalidRequest,
    NotFound,
    TorchEngine,
    rules,
)
from weightledger.rules import (
    DTESNDynamicIntegration,
    PairedGate,
    RuleError,
)

SHORT = {"x": torch.ones(3, IN), "y": torch.ones(2, OUT)}
NARROW = {"x": torch.ones(2, 4), "y": torch.ones(2, OUT)}
EMPTY = {"x": torch.ones(0, IN), "y": torch.ones(0, OUT)}
SHORT_TARGET = {**observed(), "target": torch.ones(39, OUT)}
THIN_X = {**observed(), "x": torch.ones(40, IN - 1), "target": torch.ones(40, OUT)}
LABELS = {**observed(), "target": torch.zeros(40)}
SPIKES = {"pre_spikes": torch.ones(6, IN), "post_spikes": torch.ones(6, OUT)}
UNEVEN = {**SPIKES, "x": torch.ones(4, IN), "target": torch.ones(4, OUT)}
BROKEN_X = {**observed(), "x": torch.full((40, IN), torch.inf), "target": torch.ones(40, OUT)}
GATED = {"gate": PairedGate()}
BROKEN = {**samples(), "target": torch.full((40, OUT), torch.nan)}


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([1.0, 2.0], {}, RuleError, r"\(3, 5\)"),
        ("x", {}, RuleError, "update_data"),
        ([[1.0], [2.0, 3.0]], {}, RuleError, "update_data"),
        (float("nan"), {}, RuleError, "not finite"),
        (True, {}, RuleError, "booleans"),
        (0.1, {"parameter_name": "nope"}, NotFound, "'nope' not found"),
        (0.1, {"learning_rate": -1.0}, RuleError, "learning_rate"),
        (0.1, {"rule": "backprop"}, rules.UnknownRule, "no rule"),
        (0.1, {"rule": "oja"}, RuleError, "not from update_data"),
        (0.1, {"performance_context": {"accuracy_change": "up"}}, RuleError, "accuracy_change"),
        (0.1, {"performance_context": {"latency_change": math.inf}}, RuleError, "finite"),
        (0.1, {"stream": "a/b"}, RuleError, "stream's name"),
    ],
)
def test_a_bad_update_changes_nothing(
    integrate: Integrate, data: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    bridge = integrate()
    call = {"parameter_name": "2.weight", "update_data": data, **options}
    with pytest.raises(error, match=message):
        run(bridge.enhanced_incremental_update(**call))
    assert bridge.dynamic_manager.log.live.head.seq == 0
    assert issubclass(error, InvalidRequest | NotFound)


@pytest.mark.parametrize(
    ("activities", "options", "message"),
    [
        ({"x": torch.ones(2, IN)}, {"rule": "hebb"}, "missing: y"),
        ({**observed(), "z": 1.0}, {"rule": "hebb"}, "not z"),
        (NARROW, {"rule": "hebb"}, "in=5"),
        (SHORT, {"rule": "hebb"}, r"batch=3.*\(2, 3\)"),
        (EMPTY, {"rule": "hebb"}, "is empty"),
        (observed(), {"rule": "hebb", "parameter_name": "2.bias"}, r"\[out, in\]"),
        (BROKEN, {"rule": "lms"}, "not finite"),
        (samples(), {"rule": "rls", "learning_rate": 0.1}, "no learning rate"),
        (samples(), {"rule": "rls", "rule_config": {"beta": 1}}, "no field 'beta'"),
        (observed(), {"rule": "hebb", "gate": PairedGate()}, "x, y and target"),
        (samples(), {"rule": "rls", "batch_size": 0}, "batch_size"),
        (samples(), {}, "needs the activities"),
        # A readout's y and a gate's scores are worked out from x before the rule is asked.
        (THIN_X, {"rule": "rls"}, "'x' of rls.*in=5"),
        ({**observed(), "target": torch.ones(40, 2)}, {"rule": "nlms"}, "out=3"),
        ({**observed(), "target": torch.ones(40)}, {"rule": "rls"}, "'target' of rls"),
        (SHORT_TARGET, {"rule": "rls"}, r"got \(39, 3\)"),
        (THIN_X, {"rule": "synaptic-scaling", **GATED}, r"samples of x \[batch, 5\]"),
        (LABELS, {"rule": "hebb", **GATED}, r"samples of target \[batch, 3\]"),
        (SHORT_TARGET, {"rule": "hebb", **GATED}, r"as many as of x, got \(39, 3\)"),
        (BROKEN_X, {"rule": "synaptic-scaling", **GATED}, "'x' has values that are not finite"),
        (UNEVEN, {"rule": "pair-stdp", **GATED}, "pre_spikes 6.*x 4"),
        (
            {"delta": torch.ones(OUT, IN), "x": torch.ones(2, IN)},
            {"rule": "stdp-delta", **GATED},
            "missing: target",
        ),
        (
            {"y": torch.ones(2, OUT)},
            {"rule": "intrinsic-plasticity", "parameter_name": "2.bias", **GATED},
            "missing: x, target",
        ),
        ({**observed(2), "x": torch.ones(2, IN).to_sparse()}, {"rule": "hebb"}, "dense tensor"),
        ({**observed(2), "x": torch.ones(2, IN).to("meta")}, {"rule": "hebb"}, "on meta"),
        ({**observed(2), "x": torch.ones(2, IN) * 1j}, {"rule": "hebb"}, "real numbers"),
        ({**observed(2), "x": torch.ones(2, IN) > 0}, {"rule": "hebb"}, "booleans"),
    ],
)
def test_bad_activities_change_nothing(
    integrate: Integrate, activities: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    bridge = integrate()
    call = {"parameter_name": "2.weight", "activities": activities, **options}
    with pytest.raises(RuleError, match=message):
        run(bridge.learn(**call))
    assert bridge.dynamic_manager.log.live.head.seq == 0


def test_parameters_that_are_not_floats_are_refused(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(4)
    manager = DynamicModelManager(
        TorchEngine(module), "norm", config=DynamicUpdateConfig(backup_dir=tmp_path)
    )
    try:
        with pytest.raises(RuleError, match="int64: rules learn floats"):
            run(
                DTESNDynamicIntegration(manager).enhanced_incremental_update(
                    "num_batches_tracked", 1
                )
            )
    finally:
        manager.close()
