"""Rules against their definitions, computed another way: sums over spikes, gradients, limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from tests.rules.examples import activities_for, weight_for
from weightledger import rules
from weightledger.rules import RuleError
from weightledger.rules.library.ewc import Ewc


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def step(rule: rules.Rule, weight: torch.Tensor, **activities: torch.Tensor) -> torch.Tensor:
    return rules.propose(rule, weight, activities, rules.init(rule, weight)).delta


def test_hebb_is_the_mean_outer_product() -> None:
    x, y = normal(6, 4), normal(6, 3, seed=6)
    expected = 0.5 * torch.stack([torch.outer(b, a) for a, b in zip(x, y, strict=True)]).mean(0)
    got = step(
        rules.make_rule("hebb", {"learning_rate": 0.5}), torch.zeros(3, 4).double(), x=x, y=y
    )
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("rule_id", "units"), [("oja", 1), ("sanger", 3)])
def test_oja_and_sanger_find_the_principal_components(rule_id: str, units: int) -> None:
    scales = torch.tensor([3.0, 2.0, 1.2, 0.4, 0.2], dtype=torch.float64)
    rotation = torch.linalg.qr(normal(5, 5)).Q
    data = (normal(100, 5, seed=8) * scales) @ rotation.mT
    data -= data.mean(0)
    rule = rules.make_rule(rule_id, {"learning_rate": 0.05})
    weight = 0.1 * normal(units, 5, seed=9)
    for _ in range(600):
        weight = weight + step(rule, weight, x=data, y=data @ weight.mT)
    components = torch.from_numpy(PCA(units).fit(data.numpy()).components_)
    cosines = (weight * components).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(units).double(), rtol=1e-8, atol=0)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(units).double(), rtol=1e-8, atol=0)


def trace(train: torch.Tensor, at: int, tau: float, *, with_own: bool) -> float:
    """Σ e^(−Δt/τ) over the spikes up to a step, its own included or not."""
    times = [s for s in range(at + with_own) if train[s]]
    return sum(math.exp(-(at - s) / tau) for s in times)


def test_triplet_stdp_is_its_sum_over_spikes() -> None:
    rule = rules.make_rule("triplet-stdp", {"a2_plus": 0.003, "w_min": -99.0, "w_max": 99.0})
    assert isinstance(rule, rules.get_rule("triplet-stdp"))
    weight = torch.zeros(3, 4, dtype=torch.float64)
    sizes = {"out": 3, "in": 4, "time": 90}
    trains = activities_for(rule, weight, sizes)
    expected = torch.zeros_like(weight)
    for i, j in itertools.product(range(3), range(4)):
        pre, post = trains["pre_spikes"][:, j], trains["post_spikes"][:, i]
        for t in range(90):
            if post[t]:
                slow = trace(post, t, 125.0, with_own=False)
                expected[i, j] += trace(pre, t, 16.8, with_own=True) * (0.003 + 6.2e-3 * slow)
            if pre[t]:
                slow = trace(pre, t, 101.0, with_own=False)
                expected[i, j] -= trace(post, t, 33.7, with_own=True) * (7e-3 + 2.3e-4 * slow)
    torch.testing.assert_close(step(rule, weight, **trains), expected, rtol=1e-12, atol=1e-14)


def test_the_stdp_window_has_both_signs_and_coincidence_counts_both_ways() -> None:
    rule = rules.make_rule("pair-stdp")
    for lag, expected in (
        (5, 0.005 * math.exp(-0.25)),
        (-5, -0.00525 * math.exp(-0.25)),
        (0, -0.00025),
    ):
        pre, post = torch.zeros(20, 1).double(), torch.zeros(20, 1).double()
        pre[10], post[10 + lag] = 1, 1
        delta = step(rule, torch.zeros(1, 1).double(), pre_spikes=pre, post_spikes=post)
        assert float(delta) == pytest.approx(expected, rel=1e-12)


def test_bounds_stop_a_step_and_do_not_move_weights_outside_them() -> None:
    rule = rules.make_rule("pair-stdp", {"a_plus": 0.5, "a_minus": 0.0})
    pre = post = torch.ones(1, 1).double()
    for before, after in ((0.2, 0.7), (0.8, 1.0), (3.0, 3.0), (-3.0, -2.5)):
        delta = step(rule, torch.full((1, 1), before).double(), pre_spikes=pre, post_spikes=post)
        assert before + float(delta) == pytest.approx(after)
    falling = rules.make_rule("pair-stdp", {"a_plus": 0.0, "a_minus": 0.5})
    for before, after in ((-0.8, -1.0), (-3.0, -3.0), (3.0, 2.5)):
        delta = step(falling, torch.full((1, 1), before).double(), pre_spikes=pre, post_spikes=post)
        assert before + float(delta) == pytest.approx(after)


def bcm_responses(tau: float, steps: int) -> list[list[float]]:
    """Responses of a BCM cell to two equiprobable inputs, step by step, until they explode."""
    rule = rules.make_rule("bcm", {"learning_rate": 0.005, "tau_theta": tau})
    patterns = torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.6, 0.5]], dtype=torch.float64)
    state = {"theta": torch.zeros(1, dtype=torch.float64)}
    responses = []
    for row in torch.randint(0, 2, (steps,), generator=seeded(3)).tolist():
        y = patterns @ weight.mT
        responses.append(y[:, 0].tolist())
        if not max(responses[-1]) < 1e3:
            break
        proposal = rule.propose(weight, {"x": patterns[row][None], "y": y[row][None]}, state)
        weight, state = weight + proposal.delta, dict(proposal.state)
    return responses


@pytest.mark.parametrize("tau", [30.0, 100.0])
def test_bcm_becomes_selective_with_response_two(tau: float) -> None:
    last = torch.tensor(bcm_responses(tau, 8_000)[-3_000:]).mean(0)
    assert sorted(last.tolist()) == pytest.approx([0.0, 2.0], abs=0.1)


def test_bcm_oscillates_and_diverges_where_theta_is_slow() -> None:
    """Four times the fixed point at τ 500 and silence after it; no bound at all at 2000."""
    preferred = torch.tensor(bcm_responses(500.0, 6_000)).max(dim=1).values
    assert 3 < float(preferred.max()) < 100
    assert float(preferred[int(preferred.argmax()) :].min()) < 0.5
    assert bcm_responses(2000.0, 2_000)[-1][0] > 1e3


def layer_and_gradient(policy: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer, an input, and d E[reward]/dW by autograd over all actions of a policy."""
    weight, x = (0.5 * normal(3, 4)).requires_grad_(), normal(4, seed=6)
    rewards = normal(8, seed=7)
    net = weight @ x
    if policy == "softmax":
        expected = (torch.softmax(net, 0) * rewards[:3]).sum()
    else:
        p = torch.sigmoid(net)
        expected = sum(
            rewards[n] * torch.where(torch.tensor(bits) == 1, p, 1 - p).prod()
            for n, bits in enumerate(itertools.product((0, 1), repeat=3))
        )
    return weight, x, torch.autograd.grad(expected, weight)[0]


@pytest.mark.parametrize("policy", ["softmax", "bernoulli"])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_reinforce_is_the_gradient_on_average(policy: str, baseline: float) -> None:
    """Every action once, weighted by its chance: the expected step is the exact gradient."""
    weight, x, gradient = layer_and_gradient(policy)
    net = (weight @ x).detach()
    rewards = normal(8, seed=7)
    if policy == "softmax":
        mean = torch.softmax(net, 0)
        actions, chances = torch.eye(3).double(), mean
    else:
        mean = torch.sigmoid(net)
        actions = torch.tensor(list(itertools.product((0, 1), repeat=3))).double()
        chances = torch.where(actions == 1, mean, 1 - mean).prod(1)
    rule = rules.make_rule("reinforce", {"learning_rate": 1.0})
    state = {**rules.init(rule, weight), "baseline": torch.tensor(baseline).double()}
    total = torch.zeros_like(weight)
    for action, chance, reward in zip(actions, chances, rewards[: len(actions)], strict=True):
        activities = {
            "x": x[None],
            "mean": mean[None],
            "action": action[None],
            "reward": reward[None],
        }
        total = total + chance * rules.propose(rule, weight, activities, state).delta
    torch.testing.assert_close(total.detach(), gradient, rtol=1e-10, atol=1e-12)


def test_the_reward_baseline_is_used_before_it_moves() -> None:
    rule = rules.make_rule("reinforce", {"baseline_rate": 0.5})
    weight = weight_for(rule)
    activities = activities_for(rule, weight)
    activities["reward"] = torch.full((6,), 2.0).double()
    state = {**rules.init(rule, weight), "baseline": torch.tensor(2.0).double()}
    proposal = rules.propose(rule, weight, activities, state)
    assert not bool(proposal.delta.any())
    activities["reward"] = torch.full((6,), 4.0).double()
    assert float(rules.propose(rule, weight, activities, state).state["baseline"]) == 3.0


def test_node_perturbation_is_the_gradient_on_average() -> None:
    """Signs as noise, each combination once: exact for a quadratic loss, whatever their size."""
    weight, x, target, sigma = normal(3, 4), normal(4, seed=6), normal(3, seed=7), 0.3
    leaf = weight.clone().requires_grad_()
    gradient = torch.autograd.grad((leaf @ x - target).square().sum(), leaf)[0]
    noise = sigma * torch.tensor(list(itertools.product((-1, 1), repeat=3))).double()
    net = weight @ x
    delta = step(
        rules.make_rule("node-perturbation", {"learning_rate": 1.0, "sigma": sigma}),
        weight,
        x=x.expand(8, 4),
        noise=noise,
        loss=(net - target).square().sum().expand(8),
        perturbed_loss=(net + noise - target).square().sum(1),
    )
    torch.testing.assert_close(delta, -gradient, rtol=1e-10, atol=1e-12)


def test_noise_is_drawn_from_its_seed() -> None:
    like = torch.zeros(2000, 3)
    noise = rules.perturbation(like, 0.5, seed=7)
    assert torch.equal(noise, rules.perturbation(like, 0.5, seed=7))
    assert not torch.equal(noise, rules.perturbation(like, 0.5, seed=8))
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise, rules.perturbation(like, np.float32(0.5), seed=np.int64(7)))


def test_lms_goes_down_the_squared_error() -> None:
    x, target = normal(6, 4), normal(6, 3, seed=6)
    weight = normal(3, 4, seed=7).requires_grad_()
    loss = 0.5 * (x @ weight.mT - target).square().sum(1).mean()
    gradient = torch.autograd.grad(loss, weight)[0]
    rule = rules.make_rule("lms", {"learning_rate": 0.3})
    got = step(rule, weight, x=x, y=(x @ weight.mT).detach(), target=target)
    torch.testing.assert_close(got, -0.3 * gradient, rtol=1e-12, atol=1e-14)


def test_scaling_keeps_ratios_and_brings_the_rate_to_its_target() -> None:
    rule = rules.make_rule("synaptic-scaling", {"learning_rate": 0.5, "target_rate": 0.2})
    x = normal(50, 4).abs()
    weight = start = normal(2, 4, seed=6).abs()
    state = rules.init(rule, weight)
    for _ in range(800):
        proposal = rules.propose(rule, weight, {"y": x @ weight.mT}, state)
        weight, state = weight + proposal.delta, dict(proposal.state)
    torch.testing.assert_close(
        (x @ weight.mT).mean(0), torch.full((2,), 0.2).double(), rtol=1e-3, atol=0
    )
    ratios = weight / start
    torch.testing.assert_close(ratios, ratios[:, :1].expand(2, 4))


def test_intrinsic_plasticity_moves_activity_to_its_mean() -> None:
    rule = rules.make_rule(
        "intrinsic-plasticity", {"learning_rate": 0.01, "mean": 0.3, "sigma": 0.4}
    )
    net, bias = 0.4 * normal(500, 3), torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    for _ in range(800):
        bias = bias + step(rule, bias, y=torch.tanh(net + bias))
    means = torch.tanh(net + bias).mean(0)
    assert all(abs(float(mean) - 0.3) < 0.1 for mean in means)


def test_rls_says_so_when_p_is_no_longer_positive_definite() -> None:
    rule = rules.make_rule("rls")
    weight = weight_for(rule)
    state = {**rules.init(rule, weight), "P": -torch.eye(5).double() * 100}
    with pytest.raises(RuleError, match="positive definite"):
        rules.propose(rule, weight, activities_for(rule, weight), state)


def test_the_ewc_step_minimises_what_it_says() -> None:
    """(W′ − V)/η + λ F ⊙ (W′ − W*) = 0."""
    rule = Ewc(learning_rate=0.1, strength=30.0)
    weight, fisher, anchor = normal(3, 4), normal(3, 4, seed=6).square(), normal(3, 4, seed=7)
    delta = 0.1 * normal(3, 4, seed=8)
    state = {**rules.init(rule, weight), "fisher": fisher, "anchor": anchor}
    after = weight + rules.propose(rule, weight, {"delta": delta}, state).delta
    slope = (after - (weight + delta)) / 0.1 + 30.0 * fisher * (after - anchor)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    fresh = rules.init(rule, weight)
    assert torch.equal(rules.propose(rule, weight, {"delta": delta}, fresh).delta, delta)


def test_consolidation_keeps_a_decayed_fisher_and_a_new_anchor() -> None:
    rule = Ewc(fisher_decay=0.5)
    weight, one = normal(3, 4), normal(3, 4, seed=6).square()
    state = rule.consolidate(rules.init(rule, torch.zeros(3, 4).double()), weight, one)
    state = rule.consolidate(state, weight + 1, 3 * one)
    torch.testing.assert_close(state["fisher"], 3.5 * one)
    assert torch.equal(state["anchor"], weight + 1)
    rules.propose(rule, weight, {"delta": weight}, state)


def test_the_fisher_is_the_expected_squared_gradient_of_each_sample() -> None:
    layer = torch.nn.Linear(4, 3, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    inputs = normal(7, 4)

    def logits(values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, values, (x,))

    expected = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    for sample in inputs:
        log_p = torch.log_softmax(layer(sample), 0)
        for c in range(3):
            slopes = torch.autograd.grad(log_p[c], list(parameters.values()), retain_graph=True)
            for name, slope in zip(parameters, slopes, strict=True):
                expected[name] += log_p[c].exp().detach() * slope.square() / 7
    fisher = rules.fisher_diagonal(logits, parameters, inputs, chunk=3)
    alone = rules.fisher_diagonal(logits, {"weight": layer.weight}, inputs)["weight"]
    assert not alone.requires_grad  # though the layer's bias does
    for name, tensor in expected.items():
        assert not fisher[name].requires_grad
        torch.testing.assert_close(fisher[name], tensor.detach(), rtol=1e-12, atol=1e-15)


values = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@pytest.mark.parametrize(
    "rule_id", ["hebbian-delta", "stdp-delta", "bcm-delta", "reinforcement-delta"]
)
@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(values, min_size=6, max_size=6), asked=st.lists(values, min_size=6, max_size=6)
)
def test_delta_only_rules_give_at_most_what_was_asked(
    rule_id: str, weights: list[float], asked: list[float]
) -> None:
    rule = rules.make_rule(rule_id, {"learning_rate": 0.5})
    weight, u = torch.tensor(weights).view(2, 3), torch.tensor(asked).view(2, 3)
    activities = {"delta": u}
    if "reward" in rule.activities:
        activities["reward"] = torch.tensor(-3.0)
    delta = rules.propose(rule, weight, activities, rules.init(rule, weight)).delta
    assert bool(delta.isfinite().all())
    most = 1.05 if rule_id == "stdp-delta" else 1.0
    limit = 0.5 * most * u.double().norm(dim=1)
    assert bool((delta.double().norm(dim=1) <= limit * (1 + 1e-6) + 1e-40).all())


def test_what_the_delta_only_rules_do() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    u = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    one = {"learning_rate": 1.0}

    hebb = rules.make_rule("hebbian-delta", one)
    zero = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(step(hebb, weight, delta=u), torch.stack([zero, u[1]]))
    torch.testing.assert_close(step(hebb, weight, delta=-u), -u)
    sideways = torch.tensor([[4.0, -3.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(step(hebb, weight, delta=sideways + u)[0], sideways[0])

    stdp = rules.make_rule("stdp-delta", one)
    w = torch.tensor([0.5, 0.5, 1.0, 2.0, 2.0], dtype=torch.float64)
    got = step(stdp, w, delta=torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([0.25, -0.7875, 0.0, 0.0, -1.05]).double())

    bcm = rules.make_rule("bcm-delta", one)
    state = rules.init(bcm, weight)
    state["theta"] = torch.tensor([0.1, 1.0], dtype=torch.float64)
    proposal = rules.propose(bcm, weight, {"delta": u}, state)
    assert bool((proposal.delta[0] > 0).all())
    assert bool((proposal.delta[1] < 0).all())

    reinforcement = rules.make_rule("reinforcement-delta", one)
    for reward, gain in ((0.25, 0.25), (-0.5, -0.5), (9.0, 1.0)):
        got = step(reinforcement, weight, delta=u, reward=torch.tensor(reward).double())
        torch.testing.assert_close(got, gain * u)


def test_p_of_rls_is_the_inverse_correlation_of_a_wide_layer_too() -> None:
    """Wide enough that P is made symmetric in several tiles, the last of them cut."""
    rule = rules.make_rule("rls", {"alpha": 2.0})
    weight, x, target = torch.zeros(2, 600).double(), normal(40, 600), normal(40, 2, seed=6)
    batch = {"x": x, "y": torch.zeros_like(target), "target": target}
    proposal = rules.propose(rule, weight, batch, rules.init(rule, weight))
    p = proposal.state["P"]
    assert torch.equal(p, p.mT)
    expected = torch.linalg.inv(x.mT @ x + 2.0 * torch.eye(600).double())
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(proposal.delta, (expected @ x.mT @ target).mT, rtol=0, atol=1e-12)
