"""What every rule in the table must do: pure, deterministic, bounded in memory, strict."""

import dataclasses
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rules.examples import activities_for, used_state, weight_for
from weightledger import rules
from weightledger.rules import RULES, ForeignState, RuleError, checking
from weightledger.rules.protocol import ANY_SHAPE, Rule

EACH_RULE = pytest.mark.parametrize("rule_type", RULES.values(), ids=list(RULES))
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# RLS has no learning rate, and EWC's result is a proximal step, no multiple of it.
LINEAR = {name: rule for name, rule in RULES.items() if name not in ("rls", "ewc")}
# RLS keeps P, in × in; intrinsic plasticity learns a vector, smaller than its activities.
BOUNDED = {n: rule for n, rule in RULES.items() if n not in ("rls", "intrinsic-plasticity")}
IN_TIME = ["pair-stdp", "triplet-stdp", "r-stdp", "mstdpet", "rls"]


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )


@EACH_RULE
@EACH_DTYPE
def test_a_proposal_writes_to_nothing_and_is_the_same_again(
    rule_type: type[Rule], dtype: torch.dtype
) -> None:
    rule = rule_type()
    weight = weight_for(rule, dtype)
    activities, state = activities_for(rule, weight), used_state(rule, weight)
    given = clones({"weight": weight}), clones(activities), clones(state)
    randomness = torch.random.get_rng_state()

    one = rules.propose(rule, weight, activities, state)
    torch.manual_seed(99)
    two = rules.propose(rule, weight, activities, state)
    torch.random.set_rng_state(randomness)

    assert same_bits({"delta": one.delta}, {"delta": two.delta})
    assert same_bits(dict(one.state), dict(two.state))
    one.delta.fill_(7)
    assert same_bits({"weight": weight}, given[0])
    assert same_bits(activities, given[1])
    assert same_bits(state, given[2])


@EACH_RULE
def test_the_global_generator_is_left_alone(rule_type: type[Rule]) -> None:
    rule = rule_type()
    before = torch.random.get_rng_state()
    used_state(rule, weight_for(rule))
    assert torch.equal(before, torch.random.get_rng_state())


@EACH_RULE
@EACH_DTYPE
def test_a_proposal_is_finite_and_has_the_parameters_shape_and_dtype(
    rule_type: type[Rule], dtype: torch.dtype
) -> None:
    rule = rule_type()
    weight = weight_for(rule, dtype)
    state = rules.init(rule, weight)
    proposal = rules.propose(rule, weight, activities_for(rule, weight), state)
    assert (proposal.delta.shape, proposal.delta.dtype) == (weight.shape, dtype)
    assert bool(proposal.delta.isfinite().all())
    assert bool(proposal.delta.any())
    assert proposal.state.keys() == state.keys()
    for name, tensor in proposal.state.items():
        assert (tensor.shape, tensor.dtype) == (state[name].shape, state[name].dtype)
        assert bool(tensor.isfinite().all())
    assert all(isinstance(value, float) for value in proposal.metrics.values())


@EACH_RULE
def test_single_precision_agrees_with_double(rule_type: type[Rule]) -> None:
    rule = rule_type()
    exact = weight_for(rule)
    activities, state = activities_for(rule, exact), used_state(rule, exact)
    wanted = rules.propose(rule, exact, activities, state).delta
    rounded = exact.float()
    halves = {name: tensor.float() for name, tensor in activities.items()}
    kept = {
        name: tensor.to(like.dtype)
        for (name, tensor), like in zip(
            state.items(), rules.init(rule, rounded).values(), strict=True
        )
    }
    got = rules.propose(rule, rounded, halves, kept).delta
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule_type", LINEAR.values(), ids=list(LINEAR))
def test_the_learning_rate_is_applied_once(rule_type: type[Rule]) -> None:
    weight = weight_for(rule_type)
    activities, state = activities_for(rule_type, weight), used_state(rule_type(), weight)

    def step(rate: float) -> torch.Tensor:
        return rules.propose(rule_type(learning_rate=rate), weight, activities, state).delta  # type: ignore[call-arg]

    one = step(0.001)
    torch.testing.assert_close(step(0.004), 4 * one, rtol=1e-12, atol=0)
    assert not bool(step(0.0).any())


@pytest.mark.parametrize("rule_type", LINEAR.values(), ids=list(LINEAR))
def test_a_rate_of_zero_leaves_the_sign_of_zeros(rule_type: type[Rule]) -> None:
    weight = weight_for(rule_type)
    weight.view(-1)[::2] = 0.0
    weight.view(-1)[::4] = -0.0
    rule = rule_type(learning_rate=0.0)  # type: ignore[call-arg]
    for seed in (2, 3):
        activities = activities_for(rule, weight, seed=seed)
        delta = rules.propose(rule, weight, activities, rules.init(rule, weight)).delta
        for after in (
            weight + delta,
            checking.moved(weight, delta),
            checking.moved(weight, -delta),
        ):
            assert torch.equal(after.view(torch.int64), weight.view(torch.int64))


@pytest.mark.parametrize("rule_id", IN_TIME)
def test_a_window_is_its_steps_one_by_one(rule_id: str) -> None:
    # Slow enough that no weight meets a bound, which is held once per proposal.
    config = {"forgetting": 0.97} if rule_id == "rls" else {"learning_rate": 0.01}
    rule = rules.make_rule(rule_id, config)
    weight = weight_for(rule)
    sizes = {"out": 3, "in": 5, "batch": 150, "time": 150}
    activities, state = activities_for(rule, weight, sizes), used_state(rule, weight)
    at_once = rules.propose(rule, weight, activities, state)
    total = torch.zeros_like(weight)
    for row in range(150):
        one = {name: tensor[row : row + 1] for name, tensor in activities.items()}
        if rule_id == "rls":
            # Its y is what the weight at hand predicts; the window's was computed before it.
            one["y"] = one["y"] + one["x"] @ total.mT
        proposal = rules.propose(rule, weight, one, state)
        total += proposal.delta
        state = dict(proposal.state)
    torch.testing.assert_close(at_once.delta, total, rtol=1e-10, atol=1e-13)
    for name, tensor in at_once.state.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-10, atol=1e-13)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside were holding at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        known = {
            a.untyped_storage()._cdata
            for a in [*args, *(kwargs or {}).values()]
            if isinstance(a, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in known | self._seen:
                    self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._seen.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


@pytest.mark.parametrize("rule_type", BOUNDED.values(), ids=list(BOUNDED))
def test_memory_stays_within_four_times_the_parameter(rule_type: type[Rule]) -> None:
    rule = rule_type()
    sizes = {"out": 256, "in": 512, "batch": 2, "time": 2}
    weight = weight_for(rule, torch.float32, sizes)
    activities, state = activities_for(rule, weight, sizes), rules.init(rule, weight)
    size = weight.nbytes
    assert sum(tensor.nbytes for tensor in state.values()) <= 4 * size
    with Peak() as memory:
        rules.propose(rule, weight, activities, state)
    assert size <= memory.peak <= 4 * size, f"{memory.peak / size:.2f} × the parameter"


@EACH_RULE
def test_every_tensor_is_made_on_the_parameters_device(rule_type: type[Rule]) -> None:
    """Where the default device is another, a tensor made without naming one cannot be used."""
    rule = rule_type()
    weight = weight_for(rule)
    activities = activities_for(rule, weight)
    with torch.device("meta"):
        proposal = rules.propose(rule, weight, activities, rules.init(rule, weight))
    tensors = [proposal.delta, *proposal.state.values()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


@EACH_RULE
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_up_to_rounding(rule_type: type[Rule]) -> None:
    rule = rule_type()
    weight = weight_for(rule)
    activities, state = activities_for(rule, weight), used_state(rule, weight)
    here = rules.propose(rule, weight, activities, state)
    there = rules.propose(
        rule,
        weight.cuda(),
        {name: tensor.cuda() for name, tensor in activities.items()},
        {name: tensor.cuda() if name != "version" else tensor for name, tensor in state.items()},
    )
    torch.testing.assert_close(there.delta.cpu(), here.delta, rtol=1e-10, atol=1e-13)


@EACH_RULE
def test_each_unfit_activity_is_refused_by_name(rule_type: type[Rule]) -> None:
    rule = rule_type()
    weight = weight_for(rule)
    activities, state = activities_for(rule, weight), rules.init(rule, weight)
    for name, tensor in activities.items():
        spoiled = tensor.clone()
        spoiled.view(-1)[-1] = float("nan")
        unfit = {
            "not finite": spoiled,
            "has shape": tensor[None],
            "float32": tensor.float(),
            "on meta": tensor.to("meta"),
        }
        for message, replacement in unfit.items():
            with pytest.raises(RuleError, match=message) as caught:
                rules.propose(rule, weight, {**activities, name: replacement}, state)
            assert caught.value.param == name
        if tensor.ndim and rule.activities[name].shape != ANY_SHAPE:
            with pytest.raises(RuleError, match=r"is empty|has shape"):
                rules.propose(rule, weight, {**activities, name: tensor[:0]}, state)
        rest = {other: value for other, value in activities.items() if other != name}
        with pytest.raises(RuleError, match=f"missing: {name}"):
            rules.propose(rule, weight, rest, state)
    with pytest.raises(RuleError, match="not colour"):
        rules.propose(rule, weight, {**activities, "colour": weight}, state)


@EACH_RULE
def test_activities_must_agree_in_every_dimension(rule_type: type[Rule]) -> None:
    rule = rule_type()
    weight = weight_for(rule)
    activities, state = activities_for(rule, weight), rules.init(rule, weight)
    for name, activity in rule.activities.items():
        for axis, dimension in enumerate(activity.shape):
            shared = [a for a in rule.activities.values() if dimension in a.shape]
            if dimension in rule.parameter or len(shared) > 1:
                shorter = activities[name].narrow(axis, 0, activities[name].shape[axis] - 1)
                with pytest.raises(RuleError, match="has shape"):
                    rules.propose(rule, weight, {**activities, name: shorter}, state)


@EACH_RULE
def test_a_state_from_elsewhere_is_refused(rule_type: type[Rule]) -> None:
    rule = rule_type()
    weight = weight_for(rule)
    activities, state = activities_for(rule, weight), rules.init(rule, weight)
    newer = {**state, "version": state["version"] + 1}
    with pytest.raises(ForeignState, match="made by version 2"):
        rules.propose(rule, weight, activities, newer)
    with pytest.raises(ForeignState, match=r"rules\.init"):
        rules.propose(rule, weight, activities, {})
    with pytest.raises(ForeignState, match="holds"):
        rules.propose(rule, weight, activities, {**state, "of_another_rule": weight})
    for name in state.keys() - {"version"}:
        for tensor in (state[name][None], state[name].half(), state[name].to("meta")):
            with pytest.raises(ForeignState, match=f"'{name}'"):
                rules.propose(rule, weight, activities, {**state, name: tensor})


@EACH_RULE
def test_parameters_that_it_cannot_learn_are_refused(rule_type: type[Rule]) -> None:
    rule = rule_type()
    weight = weight_for(rule)
    with pytest.raises(RuleError, match="bfloat16"):
        rules.init(rule, weight.bfloat16())
    with pytest.raises(RuleError, match="empty"):
        rules.init(rule, weight[:0])
    if rule.parameter != ANY_SHAPE:
        with pytest.raises(RuleError, match=r"shape \[out"):
            rules.init(rule, torch.zeros(2, 3, 3, 3))
    if rule.parameter == ("out", "in"):
        with pytest.raises(RuleError, match=r"weight\.flatten\(1\)"):
            rules.init(rule, torch.zeros(2, 3, 3, 3))


def test_a_convolution_learns_through_its_unfolded_form() -> None:
    """The layout that the refusal names: its product with the columns is the convolution."""
    layer = torch.nn.Conv2d(2, 4, 3, bias=False, dtype=torch.float64)
    images = torch.rand(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.unfold(images, 3).mT.flatten(0, 1)
    weight = layer.weight.detach().flatten(1)
    y = x @ weight.mT
    expected = layer(images).detach().flatten(2).mT.flatten(0, 1)
    torch.testing.assert_close(y, expected)
    rule = rules.make_rule("oja")
    proposal = rules.propose(rule, weight, {"x": x, "y": y}, rules.init(rule, weight))
    assert proposal.delta.view_as(layer.weight).shape == layer.weight.shape


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("rule_id", [i for i, r in RULES.items() if r.parameter == ANY_SHAPE])
def test_rules_without_activities_take_any_shape(rule_id: str, shape: tuple[int, ...]) -> None:
    rule = rules.make_rule(rule_id)
    weight = torch.full(shape, 0.25)
    proposal = rules.propose(rule, weight, activities_for(rule, weight), rules.init(rule, weight))
    assert proposal.delta.shape == weight.shape


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.array, torch.tensor])
@EACH_RULE
def test_every_number_of_its_config_may_be_numpys_or_torchs(
    rule_type: type[Rule], scalar: Any
) -> None:
    plain = rules.config_of(rule_type())
    given = {n: scalar(v) for n, v in plain.items() if isinstance(v, float)}
    for rule in (rules.make_rule(rule_type.id, given), rule_type(**given)):
        config = rules.config_of(rule)
        assert {name: type(value) for name, value in config.items()} == {
            name: type(value) for name, value in plain.items()
        }
        assert config == pytest.approx(plain)


@EACH_RULE
def test_every_field_of_its_config_has_a_range(rule_type: type[Rule]) -> None:
    for field in dataclasses.fields(rule_type):
        for value in (float("nan"), float("inf")):
            with pytest.raises(RuleError):
                rules.make_rule(rule_type.id, {field.name: value})
