"""Echo state networks on rooted trees: one reservoir a node, children feeding their parent.

    x_v(t) = (1 − a) x_v(t−1) + a tanh(W_v x_v(t−1) + Σ_c U_vc x_c(t) + W_in,v u(t) + b_v)

Children are stepped before their parent, which sees their state of the same time, as in deep
echo state networks. One node is Jaeger's echo state network (GMD report 148, 2001, with the leak
of Jaeger et al., Neural Networks 20, 2007); a path is a deep one (Gallicchio, Micheli & Pedrelli,
Neurocomputing 268, 2017); a star's leaves are parallel ones, collected by the root.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from weightledger.rules.errors import RuleError
from weightledger.rules.ranges import check_choice, check_ranges, number
from weightledger.rules.reservoirs.rooted_trees import Tree, children
from weightledger.rules.reservoirs.spectral import scale_to_radius

Weights = Mapping[str, torch.Tensor]
"""`{v}.W` [n_v, n_v], `{v}.W_in` [n_v, inputs], `{v}.b` [n_v], `{v}.U.{c}` [n_v, n_c]."""


@dataclass(frozen=True, slots=True)
class TreeReservoir:
    """The architecture; its weights are drawn by `weights` from a seed.

    `reservoir_size` neurons in total are shared out over the nodes of `tree`, sizes differing by
    at most one, the first nodes the larger. `inputs_to` "leaves" gives u to childless nodes only,
    as a deep echo state network does. W is scaled so that its true largest |eigenvalue| is
    `spectral_radius`; "orthogonal" draws W as a random rotation first.
    """

    reservoir_size: int
    inputs: int
    tree: Tree = (-1,)
    spectral_radius: float = 0.9
    leak: float = 1.0
    input_scale: float = 1.0
    coupling_scale: float = 1.0
    bias_scale: float = 0.0
    density: float = 1.0
    recurrent: Literal["gaussian", "orthogonal"] = "gaussian"
    inputs_to: Literal["all", "leaves"] = "all"

    def __post_init__(self) -> None:
        children(self.tree)
        check_ranges(
            self,
            counts=["reservoir_size", "inputs"],
            positive=["spectral_radius"],
            fraction=["leak", "density"],
            not_negative=["input_scale", "coupling_scale", "bias_scale"],
        )
        if self.reservoir_size < len(self.tree):
            raise RuleError(
                f"reservoir_size {self.reservoir_size} is less than one neuron for each of "
                f"{len(self.tree)} nodes",
                param="reservoir_size",
            )
        check_choice("recurrent", self.recurrent, ("gaussian", "orthogonal"))
        check_choice("inputs_to", self.inputs_to, ("all", "leaves"))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each node; their sum is `reservoir_size`."""
        each, more = divmod(self.reservoir_size, len(self.tree))
        return tuple(each + (node < more) for node in range(len(self.tree)))

    def weights(
        self,
        seed: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> dict[str, torch.Tensor]:
        """All weights, drawn on the CPU in float64, so the same for a seed on every device."""
        generator = torch.Generator().manual_seed(int(number("seed", seed)))
        below, sizes = children(self.tree), self.sizes
        drawn: dict[str, torch.Tensor] = {}
        for node, size in enumerate(sizes):
            drawn[f"{node}.W"] = self._recurrent(size, generator)
            scale = self.input_scale if self._sees_input(below[node]) else 0.0
            drawn[f"{node}.W_in"] = _uniform(generator, scale, size, self.inputs)
            drawn[f"{node}.b"] = _uniform(generator, self.bias_scale, size)
            for child in below[node]:
                scale = self.coupling_scale / sizes[child] ** 0.5
                drawn[f"{node}.U.{child}"] = _uniform(generator, scale, size, sizes[child])
        return {name: tensor.to(device, dtype) for name, tensor in drawn.items()}

    def run(
        self, weights: Weights, inputs: torch.Tensor, start: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States [time, …, reservoir_size] for inputs [time, …, inputs], node after node.

        `start` […, reservoir_size] is the state before the first input, else zeros; the dots are
        any batch of independent sequences. Raises RuleError for shapes that do not fit.
        """
        if inputs.ndim < 2 or inputs.shape[-1] != self.inputs:
            raise RuleError(f"inputs are [time, …, {self.inputs}], got {tuple(inputs.shape)}")
        batch = inputs.shape[1:-1]
        if start is None:
            start = inputs.new_zeros(*batch, self.reservoir_size)
        if start.shape != (*batch, self.reservoir_size):
            raise RuleError(
                f"start is {[*batch, self.reservoir_size]}, got {tuple(start.shape)}", param="start"
            )
        states = inputs.new_empty(len(inputs), *batch, self.reservoir_size)
        own = torch.split(states, list(self.sizes), dim=-1)
        first = torch.split(start, list(self.sizes), dim=-1)
        below = children(self.tree)
        # What comes from outside a node is known for all times before the node is run.
        for node in reversed(range(len(self.tree))):
            drive = inputs @ weights[f"{node}.W_in"].mT + weights[f"{node}.b"]
            for child in below[node]:
                drive += own[child] @ weights[f"{node}.U.{child}"].mT
            recurrent = weights[f"{node}.W"].mT
            x = first[node]
            for time, outside in enumerate(drive):
                x = torch.lerp(x, (x @ recurrent).add_(outside).tanh_(), self.leak)
                own[node][time] = x
        return states

    def _recurrent(self, size: int, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
        if self.recurrent == "orthogonal":
            drawn = torch.linalg.qr(drawn).Q
        if self.density < 1:
            kept = torch.rand(size, size, generator=generator, dtype=torch.float64) < self.density
            drawn = drawn.mul_(kept)
        return scale_to_radius(drawn, self.spectral_radius)

    def _sees_input(self, children_of_node: list[int]) -> bool:
        return self.inputs_to == "all" or not children_of_node


def _uniform(generator: torch.Generator, scale: float, *shape: int) -> torch.Tensor:
    """Uniform in (−scale, scale)."""
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return drawn.mul_(2).sub_(1).mul_(scale)
