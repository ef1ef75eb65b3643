"""A hundred thousand steps of input that says little: no state blows up, and none dies."""

from collections.abc import Callable

import pytest
import torch

from tests.rules.examples import SIZES, activities_for, weight_for
from weightledger import rules
from weightledger.rules import RULES
from weightledger.rules.protocol import ANY_SHAPE, Rule

STEPS = 100_000
Inputs = Callable[[int, torch.Generator], torch.Tensor]


# RLS with forgetting

WIDTH, OUT, BLOCK, NOISE = 32, 2, 250, 0.1


def drawn(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


BASIS = drawn(6, WIDTH, torch.Generator().manual_seed(7))


def of_rank_six(count: int, generator: torch.Generator) -> torch.Tensor:
    return drawn(count, 6, generator) @ BASIS


def rarely_active(count: int, generator: torch.Generator) -> torch.Tensor:
    """The second half of the inputs is 0 but for one sample in a thousand."""
    x = drawn(count, WIDTH, generator)
    x[:, WIDTH // 2 :] *= torch.rand(count, WIDTH // 2, generator=generator) < 1e-3
    return x


def barely_active(count: int, generator: torch.Generator) -> torch.Tensor:
    x = drawn(count, WIDTH, generator)
    x[:, WIDTH // 2 :] *= 1e-4
    return x


def silent(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros(count, WIDTH, dtype=torch.float64)


def constant(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.ones(count, WIDTH, dtype=torch.float64)


class Following:
    """RLS following x Wᵀ and noise; `errors` are the mean squared ones of each block."""

    def __init__(self, inputs: Inputs, **config: float) -> None:
        self._inputs = inputs
        self._generator = torch.Generator().manual_seed(0)
        self.rule = rules.make_rule("rls", config)
        self.weight = torch.zeros(OUT, WIDTH, dtype=torch.float64)
        self.state = rules.init(self.rule, self.weight)
        self.errors: list[float] = []

    def follow(self, wanted: torch.Tensor, steps: int) -> None:
        for _ in range(0, steps, BLOCK):
            x = self._inputs(BLOCK, self._generator)
            target = x @ wanted.mT + NOISE * drawn(BLOCK, OUT, self._generator)
            seen = {"x": x, "y": x @ self.weight.mT, "target": target}
            proposal = rules.propose(self.rule, self.weight, seen, self.state)
            self.weight, self.state = self.weight + proposal.delta, dict(proposal.state)
            self.errors.append(float((target - seen["y"]).square().mean()))


@pytest.mark.parametrize(
    ("inputs", "forgetting"),
    [
        (of_rank_six, 0.995),
        (rarely_active, 0.995),
        (barely_active, 0.995),
        (silent, 0.995),
        (constant, 0.995),
        (of_rank_six, 0.95),
        (rarely_active, 0.95),
    ],
)
def test_rls_lasts_and_follows_what_it_can_see(inputs: Inputs, forgetting: float) -> None:
    run = Following(inputs, forgetting=forgetting)
    one, other = (drawn(OUT, WIDTH, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    run.follow(one, STEPS)
    largest = 100.0 * 2 * WIDTH**0.5
    for wanted in (one, other):
        eigenvalues = torch.linalg.eigvalsh(run.state["P"])
        assert torch.equal(run.state["P"], run.state["P"].mT)
        assert 0 < float(eigenvalues[0]) <= float(eigenvalues[-1]) <= largest
        # Noise in the target, and what the fading memory makes of it: 16 inputs at .95 twice that.
        usual = torch.tensor(run.errors[-8:]).median()
        assert float(usual) < 4 * NOISE**2, "what is excited is not followed"
        run.follow(wanted if wanted is other else other, 20 * BLOCK)
    assert float(run.weight.abs().max()) < 100


def test_rls_says_nothing_of_what_it_never_saw() -> None:
    """Directions that no input excites keep the weight they had, to rounding."""
    run = Following(of_rank_six, forgetting=0.995)
    run.follow(torch.ones(OUT, WIDTH).double(), STEPS // 10)
    unseen = torch.linalg.svd(BASIS).Vh[6:]
    assert float((run.weight @ unseen.mT).abs().max()) < 1e-9


@pytest.mark.parametrize("forgetting", [1.0, 0.995, 0.97])
def test_the_bound_changes_no_bit_where_every_direction_is_excited(forgetting: float) -> None:
    wanted = drawn(OUT, WIDTH, torch.Generator().manual_seed(1))
    runs = [
        Following(lambda count, g: drawn(count, WIDTH, g), forgetting=forgetting, ceiling=ceiling)
        for ceiling in (100.0, 1e300)
    ]
    for run in runs:
        run.follow(wanted, 5_000)
    assert torch.equal(runs[0].weight, runs[1].weight)
    assert torch.equal(runs[0].state["P"], runs[1].state["P"])


def test_a_low_ceiling_keeps_p_at_what_it_began_with() -> None:
    run = Following(of_rank_six, forgetting=0.9, alpha=0.5, ceiling=1.0)
    run.follow(torch.ones(OUT, WIDTH).double(), 2_000)
    assert float(torch.linalg.eigvalsh(run.state["P"])[-1]) <= 2 * 2 * WIDTH**0.5
    with pytest.raises(rules.RuleError, match="ceiling is at least 1"):
        rules.make_rule("rls", {"ceiling": 0.5})


# All other rules that remember something

WITH_STATE = {
    name: rule
    for name, rule in RULES.items()
    if name not in ("rls", "ewc") and rule().init(torch.zeros(3, 5))
}


def seen_by(
    rule: type[Rule], weight: torch.Tensor, x: torch.Tensor, reward: float
) -> dict[str, torch.Tensor]:
    """What the rule sees of a layer whose input is x; what it answers follows the weight."""
    y, rows = x @ weight.mT, len(x)
    chosen = torch.zeros(rows, SIZES["out"])
    chosen[:, 0] = 1
    whole = {
        "x": x,
        "y": y,
        "mean": torch.softmax(y, 1),
        "action": chosen,
        "pre_spikes": (x > 0.25).float(),
        "post_spikes": (x[:, : SIZES["out"]] > 0.25).float(),
        "delta": torch.full_like(weight, float(x.abs().mean())),
    }
    rewards = {
        name: torch.full([rows for _ in activity.shape], reward)
        for name, activity in rule.activities.items()
        if name == "reward"
    }
    return {n: t for n, t in {**whole, **rewards}.items() if n in rule.activities}


@pytest.mark.parametrize("kind", ["silent", "constant", "rank two"])
@pytest.mark.parametrize("rule_type", WITH_STATE.values(), ids=list(WITH_STATE))
def test_a_rules_memory_neither_blows_up_nor_dies(rule_type: type[Rule], kind: str) -> None:
    """Rules that average a window move once for it, so their rates are as much higher."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, -0.5, 0]])
    averages = "batch" in {d for a in rule_type.activities.values() for d in a.shape}
    window = 50 if averages else 200
    asked = any(a.shape == ANY_SHAPE for a in rule_type.activities.values())
    rule = rule_type(learning_rate=0.5) if averages and rule_type.id != "bcm" else rule_type()  # type: ignore[call-arg]
    weight = weight_for(rule, torch.float32)
    state = {name: t for name, t in rules.init(rule, weight).items() if name != "version"}
    for _ in range(STEPS // window):
        x = {
            "silent": torch.zeros(window, 5),
            "constant": torch.full((window, 5), 0.5),
            "rank two": torch.randn(window, 2, generator=generator) @ basis,
        }[kind]
        seen = seen_by(rule_type, weight, x, {"silent": 0.0, "constant": 1.0}.get(kind, -1.0))
        proposal = rule.propose(weight, seen, state)
        if not asked:
            weight = weight + proposal.delta
        state = dict(proposal.state)
    assert all(bool(tensor.isfinite().all()) for tensor in (weight, *state.values()))
    assert max(float(tensor.abs().max()) for tensor in state.values()) < 1_000
    assert float(weight.abs().max()) <= 10
    # From a weight that no bound holds, what it remembers lets it learn on.
    fresh, whole = weight_for(rule, torch.float32), {"version": torch.tensor(rule.version), **state}
    step = rules.propose(rule, fresh, activities_for(rule, fresh), whole).delta
    assert bool(step.isfinite().all()) and bool(step.any())


def test_fisher_information_ends_at_what_tasks_add_over_what_is_forgotten() -> None:
    rule = RULES["ewc"](fisher_decay=0.9)  # type: ignore[call-arg]
    weight = torch.ones(2, 3)
    state = rules.init(rule, weight)
    for _ in range(5_000):
        state = rule.consolidate(state, weight, torch.ones(2, 3))  # type: ignore[attr-defined]
    torch.testing.assert_close(state["fisher"], torch.full((2, 3), 10.0))
    for _ in range(5_000):
        state = rule.consolidate(state, weight, torch.zeros(2, 3))  # type: ignore[attr-defined]
    step = rules.propose(rule, weight, {"delta": torch.ones(2, 3)}, state)
    torch.testing.assert_close(step.delta, torch.ones(2, 3))
