"""Modules for the engines' suite: those that any engine must hold, and those it must refuse."""

import copy
import functools
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import BertConfig, BertModel

from tests.text_models import llama

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Kind:
    make: Make
    given: Tensor


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    numbers = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(numbers).reshape(shape).to(dtype)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight
        self.twice = nn.ModuleList([nn.Linear(10, 10)] * 2)

    def forward(self, x: Tensor) -> Any:
        x = self.head(self.embed(x))
        for part in self.twice:
            x = part(x)
        return x


class PlainList(nn.Module):
    """Runs its layers through a plain list and a tuple of parameters, as old code does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.order = [self.b, {"then": self.a}]
        self.weights = (self.a.weight, self.b.bias)

    def forward(self, x: Tensor) -> Any:
        first, second = self.order
        return second["then"](first(x)) @ self.weights[0] + self.weights[1]


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.a.register_forward_hook(self.after)
        self.b.register_forward_pre_hook(functools.partial(self.before, by=self.a.bias))
        self.run = self.inner

    def after(self, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        return out * self.b.bias

    def before(self, module: nn.Module, given: Any, *, by: Tensor) -> Any:
        return (given[0] + by,)

    def inner(self, x: Tensor) -> Any:
        return self.b(self.a(x))

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


class Remembers(nn.Module):
    """Keeps what it computed, with its autograd history, and grows new attributes as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        setattr(self, f"call_{self.calls}", x)
        self.last = self.a(x)
        return self.last


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("shift", torch.arange(4), persistent=False)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.frozen = nn.Parameter(torch.arange(4), requires_grad=False)
        self.table = ramp(4)

    def forward(self, x: Tensor) -> Any:
        x = x * self.scale + self.steps * self.mask + self.shift + self.frozen + self.table
        return torch.cat([x.flatten(), self.nothing.flatten()])


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(ramp(64, 48).t())
        self.conv = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
        self.w.note = "kept"

    def forward(self, x: Tensor) -> Any:
        assert self.w.note == "kept"
        return self.conv((x @ self.w).reshape(1, 8, 8, 8)).flatten()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, bidirectional=True)

    def forward(self, x: Tensor) -> Any:
        return self.rnn(x)[0]


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))


def parametrised() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
    )


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))


def text_encoder() -> nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=384, num_hidden_layers=1, **shape))


TEXT_KINDS = {
    "llama_tied": Kind(lambda: llama(tie_word_embeddings=True), torch.tensor([[0, 30, 94, 87]])),
    "bert": Kind(text_encoder, torch.tensor([[5, 6, 7], [8, 9, 10]])),
}

KINDS = {
    "mlp": Kind(mlp, ramp(5, 4)),
    "bfloat16": Kind(lambda: mlp(torch.bfloat16), ramp(5, 4, dtype=torch.bfloat16)),
    "float16": Kind(lambda: mlp(torch.float16), ramp(5, 4, dtype=torch.float16)),
    "float64": Kind(lambda: mlp(torch.float64), ramp(5, 4, dtype=torch.float64)),
    "tied": Kind(Tied, torch.tensor([1, 7, 7])),
    "batchnorm": Kind(normed, ramp(5, 4)),
    "lstm": Kind(Recurrent, ramp(3, 2, 4)),
    "plain_list": Kind(PlainList, ramp(5, 4)),
    "hooks": Kind(Hooked, ramp(5, 4)),
    "remembers": Kind(Remembers, ramp(5, 4)),
    "parametrised": Kind(parametrised, ramp(5, 4)),
    "old_weight_norm": Kind(old_weight_norm, ramp(5, 4)),
    "buffers_0d_empty": Kind(Buffers, ramp(4)),
    "strided": Kind(Strided, ramp(8, 48)),
    **TEXT_KINDS,
}


# Refused by every engine: the ledger cannot record these.


class ExtraState(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": 2}


class Packed(nn.Linear):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "_packed_params"] = (self.weight, self.bias)


class OddParameter(nn.Parameter):
    pass


def with_part(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.ModuleDict({"odd": part}))


def overlapping() -> nn.Module:
    part = nn.Linear(4, 4)
    part.second = nn.Parameter(part.weight.data[1:3])
    return with_part(part)


def sub_classed() -> nn.Module:
    part = nn.Linear(2, 2)
    part.weight = OddParameter(torch.ones(2, 2))
    return with_part(part)


def sparse() -> nn.Module:
    part = nn.Module()
    part.register_buffer("b", torch.eye(2).to_sparse())
    return with_part(part)


UNRECORDABLE: dict[str, Make] = {
    "lazy": lambda: with_part(nn.LazyLinear(3)),
    "meta": lambda: with_part(nn.Linear(2, 2, device="meta")),
    "extra_state": lambda: with_part(ExtraState(2, 2)),
    "packed": lambda: with_part(Packed(2, 2)),
    "overlap": overlapping,
    "subclass": sub_classed,
    "sparse": sparse,
}


# Refused where versions stand side by side; writing in place holds them.


def _closure(part: nn.Linear) -> None:
    part.forward = lambda x: nn.functional.linear(x, part.weight, part.bias)


def _hook_closure(part: nn.Linear) -> None:
    bias = part.bias
    part.register_forward_hook(lambda module, given, out: out + bias)


def _default_argument(part: nn.Linear) -> None:
    def hook(module: nn.Module, given: Any, out: Tensor, *, other: nn.Linear = part) -> Tensor:
        return out + other.bias

    part.register_forward_hook(hook)


def _nested_closure(part: nn.Linear) -> None:
    holder = {"models": [part]}
    part.register_forward_pre_hook(
        functools.partial(lambda by, module, given: (given[0] + holder["models"][0].bias,), 1)
    )


def _decorated(part: nn.Linear) -> None:
    @functools.wraps(nn.Linear.forward)
    def forward(x: Tensor) -> Tensor:
        return inner(x)

    inner = part.forward
    part.forward = forward


def _class_closure(part: nn.Linear) -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, part.weight)

    part.__class__ = Odd


served: nn.Module


def _global(part: nn.Linear) -> None:
    global served
    served = part
    part.register_forward_hook(lambda module, given, out: out + served.bias)


def _parameter_attribute(part: nn.Linear) -> None:
    part.weight.loader = part.reset_parameters


def _view(part: nn.Linear) -> None:
    part.transposed = part.weight.data.t()


def _lock(part: nn.Linear) -> None:
    part.guard = threading.Lock()


class SelfCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> "SelfCopy":
        return self


class OwnCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> "OwnCopy":
        made = OwnCopy(self.in_features, self.out_features)
        made.load_state_dict(copy.deepcopy(self.state_dict()))
        return made


def _becomes(cls: type[nn.Module]) -> Callable[[nn.Linear], None]:
    def change(part: nn.Linear) -> None:
        part.__class__ = cls

    return change


def linear_with(change: Callable[[nn.Linear], None]) -> Make:
    def make() -> nn.Module:
        part = nn.Linear(4, 4)
        change(part)
        return with_odd(part)

    return make


class WithOdd(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"odd": part})

    def forward(self, x: Tensor) -> Any:
        return self.layers["odd"](x)


with_odd = WithOdd


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return with_odd(torch.jit.script(nn.Linear(4, 4)))


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return with_odd(torch.jit.trace(nn.Linear(4, 4), ramp(1, 4)))


def compiled() -> nn.Module:
    return with_odd(torch.compile(nn.Linear(4, 4), backend="eager"))


INPLACE_ONLY: dict[str, Make] = {
    "scripted": scripted,
    "traced": traced,
    "compiled": compiled,
    **{
        change.__name__.strip("_"): linear_with(change)
        for change in (
            _closure,
            _hook_closure,
            _default_argument,
            _nested_closure,
            _decorated,
            _class_closure,
            _global,
            _parameter_attribute,
            _view,
            _lock,
        )
    },
    "copies_to_itself": linear_with(_becomes(SelfCopy)),
    "copies_by_itself": linear_with(_becomes(OwnCopy)),
}
