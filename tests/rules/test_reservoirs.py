"""Reservoirs on rooted trees: shapes, equivalences, readouts, and what published tables say."""

import itertools
import json
from dataclasses import asdict

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from weightledger import rules
from weightledger.rules import RuleError
from weightledger.rules.reservoirs import (
    TreeReservoir,
    count_rooted_trees,
    path,
    ridge,
    rooted_trees,
    scale_to_radius,
    spectral_radius,
    star,
    with_bias,
)
from weightledger.rules.reservoirs.rooted_trees import Tree

A000081 = [1, 1, 2, 4, 9, 20, 48, 115, 286, 719]


def uniform(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


def graph(tree: Tree) -> nx.Graph:
    found = nx.Graph()
    found.add_nodes_from(range(len(tree)))
    found.add_edges_from(enumerate(tree[1:], 1))
    return found


def rootings(tree: nx.Graph) -> int:
    """Choices of a root that no relabelling turns into each other."""
    kept: list[int] = []
    for root in tree:
        if not any(nx.isomorphism.rooted_tree_isomorphism(tree, root, tree, k) for k in kept):
            kept.append(root)
    return len(kept)


def test_rooted_trees_are_counted_as_in_oeis() -> None:
    assert [count_rooted_trees(n) for n in range(1, 11)] == A000081


@pytest.mark.parametrize("nodes", range(1, 8))
def test_rooted_trees_are_networkxs_free_trees_with_each_root(nodes: int) -> None:
    free = nx.nonisomorphic_trees(nodes) if nodes > 1 else [nx.empty_graph(1)]
    assert sum(map(rootings, free)) == count_rooted_trees(nodes)


@pytest.mark.parametrize("nodes", range(1, 9))
def test_each_shape_is_enumerated_once(nodes: int) -> None:
    trees = list(rooted_trees(nodes))
    assert len(trees) == len(set(trees)) == count_rooted_trees(nodes)
    assert trees[0] == path(nodes)
    assert trees[-1] == star(nodes)
    if nodes <= 6:
        for one, other in itertools.combinations(map(graph, trees), 2):
            assert not nx.isomorphism.rooted_tree_isomorphism(one, 0, other, 0)


def test_the_spectral_radius_is_that_of_the_largest_eigenvalue() -> None:
    rotation = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
    assert spectral_radius(rotation) == pytest.approx(2.0)
    scaled = scale_to_radius(uniform(60, 60), 0.95)
    assert float(torch.linalg.eigvals(scaled).abs().max()) == pytest.approx(0.95, rel=1e-12)
    with pytest.raises(RuleError, match="spectral radius 0"):
        scale_to_radius(torch.ones(3, 3).triu(1), 0.9)
    with pytest.raises(RuleError, match="square"):
        spectral_radius(torch.ones(3, 2))


@pytest.mark.parametrize("recurrent", ["gaussian", "orthogonal"])
def test_every_reservoir_has_its_radius_and_the_sizes_add_up(recurrent: str) -> None:
    for tree in rooted_trees(4):
        architecture = TreeReservoir(
            reservoir_size=30,
            inputs=2,
            tree=tree,
            spectral_radius=0.8,
            density=0.5,
            recurrent=recurrent,  # type: ignore[arg-type]
        )
        assert sum(architecture.sizes) == 30
        assert architecture.sizes == (8, 8, 7, 7)
        weights = architecture.weights(seed=3)
        for node in range(4):
            assert spectral_radius(weights[f"{node}.W"]) == pytest.approx(0.8, rel=1e-12)
        assert architecture.run(weights, uniform(5, 2)).shape == (5, 30)


def test_weights_come_from_their_seed_only() -> None:
    architecture = TreeReservoir(reservoir_size=9, inputs=2, tree=(-1, 0), bias_scale=0.1)
    state = torch.random.get_rng_state()
    one, two = architecture.weights(seed=4), architecture.weights(seed=4, dtype=torch.float32)
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor.float(), two[name]) for name, tensor in one.items())
    assert not torch.equal(one["0.W"], architecture.weights(seed=5)["0.W"])


def esn(
    u: torch.Tensor, w: torch.Tensor, w_in: torch.Tensor, b: torch.Tensor, leak: float
) -> torch.Tensor:
    """The textbook echo state network, step by step, from zero."""
    x, states = torch.zeros(len(w), dtype=u.dtype), []
    for inputs in u:
        x = (1 - leak) * x + leak * torch.tanh(w @ x + w_in @ inputs + b)
        states.append(x)
    return torch.stack(states)


def test_one_node_is_an_echo_state_network() -> None:
    u = uniform(50, 2)
    architecture = TreeReservoir(reservoir_size=20, inputs=2, leak=0.3, bias_scale=0.2)
    weights = architecture.weights(seed=1)
    expected = esn(u, weights["0.W"], weights["0.W_in"], weights["0.b"], 0.3)
    torch.testing.assert_close(architecture.run(weights, u), expected, rtol=1e-12, atol=1e-14)


def test_a_path_is_a_deep_echo_state_network() -> None:
    """The deepest node reads the input; each other reads the one below, at the same time."""
    u = uniform(50, 2)
    architecture = TreeReservoir(
        reservoir_size=21, inputs=2, tree=path(3), leak=0.4, bias_scale=0.2, inputs_to="leaves"
    )
    weights = architecture.weights(seed=1)
    below, layers = u, []
    for node in (2, 1, 0):
        entry = weights["2.W_in"] if node == 2 else weights[f"{node}.U.{node + 1}"]
        below = esn(below, weights[f"{node}.W"], entry, weights[f"{node}.b"], 0.4)
        layers.insert(0, below)
    expected = torch.cat(layers, dim=1)
    torch.testing.assert_close(architecture.run(weights, u), expected, rtol=1e-12, atol=1e-14)


def test_a_star_is_parallel_echo_state_networks() -> None:
    """Its leaves are independent networks; uncoupled, its root is one more of them."""
    u = uniform(50, 2)
    for coupling in (1.0, 0.0):
        architecture = TreeReservoir(
            reservoir_size=26, inputs=2, tree=star(4), leak=0.4, coupling_scale=coupling
        )
        weights = architecture.weights(seed=1)
        parts = architecture.run(weights, u).split(architecture.sizes, dim=1)
        for node, part in enumerate(parts):
            own = (weights[f"{node}.{name}"] for name in ("W", "W_in", "b"))
            alone = esn(u, *own, 0.4)  # type: ignore[call-arg, misc]
            same = torch.allclose(part, alone, rtol=1e-12, atol=1e-14)
            assert same == (node > 0 or coupling == 0.0)


def test_a_batch_of_sequences_and_a_continued_one_are_the_same_states() -> None:
    architecture = TreeReservoir(reservoir_size=15, inputs=2, tree=(-1, 0, 0), leak=0.5)
    weights, u = architecture.weights(seed=2), uniform(30, 4, 2)
    batch = architecture.run(weights, u)
    for n in range(4):
        torch.testing.assert_close(batch[:, n], architecture.run(weights, u[:, n]))
    rest = architecture.run(weights, u[12:], start=batch[11])
    torch.testing.assert_close(rest, batch[12:])


def test_what_is_refused() -> None:
    for config in (
        {"reservoir_size": 2, "tree": path(3)},
        {"tree": (-1, 1)},
        {"tree": (0, 0)},
        {"leak": 0.0},
        {"leak": 1.5},
        {"inputs_to": "some"},
        {"recurrent": "cyclic"},
    ):
        with pytest.raises(RuleError):
            TreeReservoir(**{"reservoir_size": 10, "inputs": 1, **config})  # type: ignore[arg-type]
    architecture = TreeReservoir(reservoir_size=10, inputs=2)
    weights = architecture.weights(seed=1)
    with pytest.raises(RuleError, match=r"inputs are \[time, …, 2\]"):
        architecture.run(weights, uniform(5, 3))
    with pytest.raises(RuleError, match="start"):
        architecture.run(weights, uniform(5, 2), start=uniform(9))
    with pytest.raises(RuleError, match="states are"):
        ridge(uniform(5, 2), uniform(4, 1), 1.0)
    with pytest.raises(RuleError, match="alpha"):
        ridge(uniform(5, 2), uniform(5, 1), -1.0)
    with pytest.raises(RuleError, match="at least one"):
        next(rooted_trees(0))


@pytest.mark.parametrize("alpha", [1e-6, 0.3])
def test_ridge_is_scikit_learns(alpha: float) -> None:
    x, y = uniform(80, 12), uniform(80, 3, seed=2)
    expected = Ridge(alpha=alpha, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_
    torch.testing.assert_close(
        ridge(x, y, alpha), torch.from_numpy(expected), rtol=1e-9, atol=1e-11
    )
    least = torch.linalg.lstsq(x, y).solution.mT
    torch.testing.assert_close(ridge(x, y, 0.0), least, rtol=1e-9, atol=1e-11)


def test_recursive_least_squares_ends_at_ridge() -> None:
    architecture = TreeReservoir(reservoir_size=40, inputs=2, tree=(-1, 0, 0))
    states = with_bias(architecture.run(architecture.weights(seed=1), uniform(300, 2)))
    targets = uniform(300, 3, seed=2)
    rule = rules.make_rule("rls", {"alpha": 0.01})
    weight = torch.zeros(3, 41, dtype=torch.float64)
    state = rules.init(rule, weight)
    for size, first in ((1, range(100)), (20, range(100, 300, 20))):
        for n in first:
            x = states[n : n + size]
            batch = {"x": x, "y": x @ weight.mT, "target": targets[n : n + size]}
            proposal = rules.propose(rule, weight, batch, state)
            weight, state = weight + proposal.delta, dict(proposal.state)
    torch.testing.assert_close(weight, ridge(states, targets, 0.01), rtol=0, atol=1e-10)
    assert torch.equal(state["P"], state["P"].mT)


def mackey_glass(length: int, skip: int = 1000) -> torch.Tensor:
    """τ = 17, steps of .1 by Runge-Kutta, one value a unit of time, squashed by tanh(· − 1)."""
    values = [1.2] * 171

    def slope(x: float, late: float) -> float:
        return 0.2 * late / (1 + late**10) - 0.1 * x

    for _ in range((length + skip) * 10):
        x, late, next_late = values[-1], values[-171], values[-170]
        middle = (late + next_late) / 2
        k1 = slope(x, late)
        k2 = slope(x + 0.05 * k1, middle)
        k3 = slope(x + 0.05 * k2, middle)
        k4 = slope(x + 0.1 * k3, next_late)
        values.append(x + 0.1 * (k1 + 2 * k2 + 2 * k3 + k4) / 6)
    series = torch.tensor(values[171 + 10 * skip :: 10], dtype=torch.float64)
    return torch.tanh(series - 1)


def nrmse84(series: torch.Tensor, seed: int) -> float:
    """Error of 84 steps of free running from 100 places after 3000 steps of training."""
    architecture = TreeReservoir(
        reservoir_size=400, inputs=1, leak=0.6, spectral_radius=0.95, bias_scale=0.2
    )
    weights, u = architecture.weights(seed), series[:-1, None]
    states = architecture.run(weights, u)
    features = with_bias(torch.cat([states, u], dim=1))
    readout = ridge(features[200:3200], series[201:3201, None], 1e-9)
    starts = torch.linspace(3200, len(series) - 90, 100).long()
    x, y = states[starts - 1], features[starts - 1] @ readout.mT
    for _ in range(83):
        x = architecture.run(weights, y[None], x)[0]
        y = with_bias(torch.cat([x, y], dim=1)) @ readout.mT
    squared = (y[:, 0] - series[starts + 83]).square().mean()
    return float((squared / series.var()).sqrt())


def test_mackey_glass_is_predicted_as_well_as_published() -> None:
    """NRMSE84 of 3 to 5e-4 at 400 neurons (Jaeger 2001; Jaeger & Haas, Science 304, 2004)."""
    series = mackey_glass(5000)
    errors = [nrmse84(series, seed) for seed in (1, 2)]
    assert 1e-4 < sum(errors) / 2 < 7e-4, errors


def narma10(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the tenth-order system of Atiya & Parlos, IEEE TNN 11, 2000."""
    u = (uniform(length, seed=seed) + 1).div(4).tolist()
    y = [0.0] * length
    for t in range(9, length - 1):
        y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * sum(y[t - 9 : t + 1]) + 1.5 * u[t - 9] * u[t] + 0.1
    return torch.tensor(u, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)


def narma_error(size: int, seed: int) -> float:
    """NMSE on 2000 values after 2000 of training."""
    u, y = narma10(4200, seed)
    architecture = TreeReservoir(
        reservoir_size=size, inputs=1, spectral_radius=0.95, input_scale=0.1, bias_scale=0.1
    )
    states = with_bias(architecture.run(architecture.weights(seed), u[:-1, None]))
    readout = ridge(states[200:2200], y[201:2201, None], 1e-8)
    rest = y[2201:]
    return float(((states[2200:] @ readout.mT)[:, 0] - rest).square().mean() / rest.var())


@pytest.mark.parametrize(("size", "low", "high"), [(50, 0.107, 0.145), (100, 0.07, 0.11)])
def test_narma10_is_predicted_as_well_as_published(size: int, low: float, high: float) -> None:
    """NMSE of .107 to .137 at 50 neurons, .094 at 100 (Rodan & Tino, IEEE TNN 22, 2011)."""
    error = sum(narma_error(size, seed) for seed in (1, 2, 3)) / 3
    assert low < error < high


def memory_capacity(recurrent: str, radius: float, scale: float, seed: int) -> float:
    """Σ_k r²(u(t−k), its readout) over k up to 100, on values not trained on (Jaeger 2001)."""
    architecture = TreeReservoir(
        reservoir_size=50,
        inputs=1,
        spectral_radius=radius,
        input_scale=scale,
        recurrent=recurrent,  # type: ignore[arg-type]
    )
    u = uniform(3000, 1, seed=seed)
    states = with_bias(architecture.run(architecture.weights(seed), u))
    past = torch.stack([torch.roll(u[:, 0], k) for k in range(1, 101)], dim=1)
    recalled = states[1650:] @ ridge(states[300:1650], past[300:1650], 1e-9).mT
    a, b = recalled - recalled.mean(0), past[1650:] - past[1650:].mean(0)
    correlation = (a * b).sum(0).square() / (a.square().sum(0) * b.square().sum(0))
    return float(correlation.sum())


@pytest.mark.parametrize(
    ("recurrent", "radius", "scale", "published"),
    [("gaussian", 0.9, 0.1, 22), ("orthogonal", 0.95, 0.01, 48)],
)
def test_memory_is_as_long_as_published_and_never_beyond_the_neurons(
    recurrent: str, radius: float, scale: float, published: float
) -> None:
    """About 22 for random and 48 for orthogonal reservoirs of 50 tanh neurons."""
    capacities = [memory_capacity(recurrent, radius, scale, seed) for seed in (1, 2, 3)]
    assert sum(capacities) / 3 == pytest.approx(published, abs=2)
    assert max(capacities) <= 50


def test_numbers_of_a_reservoir_may_be_numpys() -> None:
    plain = TreeReservoir(5, 2, leak=0.5)
    given = TreeReservoir(np.int64(5), np.int32(2), leak=np.float32(0.5))
    assert json.dumps(asdict(given)) == json.dumps(asdict(plain))
    one, other = plain.weights(3), given.weights(np.int64(3))
    assert all(torch.equal(one[name], other[name]) for name in one)
    states, targets = torch.eye(3), torch.ones(3, 1)
    alpha = np.float32(0.3)
    assert torch.equal(ridge(states, targets, alpha), ridge(states, targets, alpha.item()))
    for bad in (True, "5", 0, 1.5):
        with pytest.raises(RuleError, match="reservoir_size is a whole number from 1"):
            TreeReservoir(bad, 2)
