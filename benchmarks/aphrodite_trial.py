"""What the backend "ledger" does inside Aphrodite's own code for weights, without its kernels.

Aphrodite has no build for machines without a GPU, so what can be run here is its Python: the base
class of weight transfers, the factory, and the layerwise reload by which models are loaded again.
A small model of torch's layers stands in for one of Aphrodite's.

    pip download --no-deps aphrodite-engine   # unpacked into a folder, its *.py are enough
    PYTHONPATH=FOLDER:. $VLLM_VENV/bin/python -m benchmarks.aphrodite_trial
"""

from types import SimpleNamespace
from typing import Any

import torch
from aphrodite.config.weight_transfer import WeightTransferConfig
from aphrodite.distributed.weight_transfer import WeightTransferEngineFactory
from aphrodite.model_executor.model_loader.reload import record_metadata_for_reloading
from aphrodite.model_executor.model_loader.weight_utils import default_weight_loader

from weightledger.ledger.engines.vllm import BACKEND, aphrodite_plugin
from weightledger.ledger.errors import WeightsMismatch

Weights = dict[str, torch.Tensor]


class Model(torch.nn.Module):
    """Two layers and a bias, loaded by the names of a checkpoint as served models are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 4)
        self.second = torch.nn.Linear(4, 2, bias=False)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.weight_loader = default_weight_loader  # type: ignore[attr-defined]

    def load_weights(self, tensors: Any) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in tensors:
            parameters[name].weight_loader(parameters[name], tensor)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.first(inputs))
        return outputs


def identity(model: torch.nn.Module) -> list[Any]:
    """Every tensor as an object, with its bits, and every attribute of the modules."""
    seen: list[Any] = [(n, id(p), p.numpy().tobytes()) for n, p in model.named_parameters()]
    return seen + [(n, k, id(v)) for n, m in model.named_modules() for k, v in vars(m).items()]


def refused(engine: Any, tensors: Weights) -> str:
    try:
        engine.loader.attempt(list(tensors.items()))
    except WeightsMismatch as error:
        return str(error)
    raise AssertionError("it was taken")


def main() -> None:
    model = Model()
    record_metadata_for_reloading(model)
    aphrodite_plugin.register()
    aphrodite_plugin.register()  # as in each process, and again
    config: Any = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=None))
    engine: Any = WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend=BACKEND), config, torch.device("cpu"), model
    )
    base: Weights = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    engine.loader.load(list(base.items()))
    inputs = torch.randn(3, 8)
    before, answers = identity(model), model(inputs)
    good = {"first.weight": torch.ones(4, 8), "first.bias": torch.ones(4)}
    engine.loader.attempt(list(good.items()))
    assert identity(model) == before and torch.equal(model(inputs), answers)
    print("tried, and nothing changed")
    for bad in (
        {"first.other": torch.ones(4)},
        {"second.weight": torch.ones(2, 5)},
        {"first.weight": torch.ones(4, 8)},  # without its bias
    ):
        print("refused:", refused(engine, bad))
        assert identity(model) == before and torch.equal(model(inputs), answers)
    engine.loader.load(list(good.items()))
    for name, tensor in {**base, **good}.items():
        assert torch.equal(model.get_parameter(name), tensor), name
    try:
        engine.update_weights({"seq": 3, "digest": "00" * 32})
    except WeightsMismatch as error:
        print("refused:", error)
    print("loaded: ok")


if __name__ == "__main__":
    main()
