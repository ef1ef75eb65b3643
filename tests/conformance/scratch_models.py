"""Modules whose forwards write into the modules themselves, in the ways that people write it.

Each keeps its input somewhere on itself, lets `between` pass, and goes on with what it kept: so a
test can let another request in between. The right output is what `x` alone gives.
"""

import functools
import operator
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 4


def nothing() -> None:
    """What lies between writing and reading where no test looks on."""


class Moment:
    """The moment between writing and reading, in every thread."""

    passes: Callable[[], object] = staticmethod(nothing)


def between() -> None:
    Moment.passes()


class Base(nn.Module):
    """Scales what it kept; `kept` is where that is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.prepare()

    def prepare(self) -> None:
        """What the module has before it runs."""

    def run(self, kept: Tensor) -> Tensor:
        out: Tensor = self.inner(kept)
        return out


class Attribute(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        between()
        return self.run(self.kept)


class Counter(Base):
    def prepare(self) -> None:
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        between()
        return self.run(x * self.steps)


class SetByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        setattr(self, "kept", x)  # noqa: B010
        between()
        return self.run(self.kept)


class Alias(Base):
    def forward(self, x: Tensor) -> Tensor:
        me = self
        me.kept = x
        between()
        return self.run(self.kept)


class Transient(Base):
    """Writes into a buffer that is no part of its state, as a frequency table."""

    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(1, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.copy_(x)
        between()
        return self.run(self.kept)


class Replaced(Base):
    """Registers its buffer anew for each input."""

    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("kept", x, persistent=False)
        between()
        return self.run(self.kept)


class Persistent(Base):
    """Counts in a buffer of its state."""

    def prepare(self) -> None:
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        between()
        return self.run(x * self.steps)


class Sliced(Base):
    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(2, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept[:1] = x
        between()
        return self.run(self.kept[:1])


class PlainTensor(Base):
    def prepare(self) -> None:
        self.kept = torch.zeros(1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.data.copy_(x)
        between()
        return self.run(self.kept)


class Listed(Base):
    def prepare(self) -> None:
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        between()
        return self.run(torch.stack(self.kept).sum(0))


class Cached(Base):
    """Keeps by a key what it computed for the first input that came."""

    def prepare(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        cache = self.kept
        if "mask" not in cache:
            cache["mask"] = x
        between()
        return self.run(cache["mask"])


class Queued(Base):
    def prepare(self) -> None:
        self.kept: deque[Tensor] = deque(maxlen=1)

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        between()
        return self.run(self.kept[0])


class Box:
    """Something that is no module, with a state of its own."""

    def __init__(self) -> None:
        self.value = torch.zeros(1, WIDTH)

    def put(self, value: Tensor) -> None:
        self.value = value


class Boxed(Base):
    def prepare(self) -> None:
        self.box = Box()

    def forward(self, x: Tensor) -> Tensor:
        self.box.put(x)
        between()
        return self.run(self.box.value)


class BoxAttribute(Base):
    def prepare(self) -> None:
        self.box = Box()

    def forward(self, x: Tensor) -> Tensor:
        self.box.value = x
        between()
        return self.run(self.box.value)


class IntoChild(Base):
    """Hands something down by writing it into a submodule."""

    def forward(self, x: Tensor) -> Tensor:
        self.inner.kept = x
        between()
        return self.run(self.inner.kept)


class IntoParent(nn.Module):
    """Only a part of a part writes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Sequential(Attribute())])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def keep(module: Any, x: Tensor) -> None:
    module.kept = x


class Helped(Base):
    def forward(self, x: Tensor) -> Tensor:
        keep(self, x)
        between()
        return self.run(self.kept)


class Method(Base):
    def keep(self, x: Tensor) -> None:
        self.kept = x

    def forward(self, x: Tensor) -> Tensor:
        self.keep(x)
        between()
        return self.run(self.kept)


class Inherited(Method):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def keeping(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def update(self: Any, x: Tensor) -> None:
        self.kept.copy_(x)

    @functools.wraps(forward)
    def wrapper(self: Any, x: Tensor) -> Tensor:
        update(self, x)
        between()
        return forward(self, x)

    return wrapper


class Decorated(Base):
    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(1, WIDTH), persistent=False)

    @torch.no_grad()
    @keeping
    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.kept)


class Hooked(Base):
    def prepare(self) -> None:
        self.inner.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, given: Any) -> Any:
        self.kept = given[0]
        between()
        return (self.kept,)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def keep_input(module: Any, given: Any) -> Any:
    module.kept = given[0]
    between()
    return (module.kept,)


class HookedByFunction(Base):
    def prepare(self) -> None:
        self.inner.register_forward_pre_hook(keep_input)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class InASet(Base):
    """Its versions are copied whole: a set leads to its weights."""

    def prepare(self) -> None:
        self.held = {self.inner}
        self.table = torch.zeros(1, WIDTH)
        self.register_buffer("kept", torch.zeros(1, WIDTH), persistent=False)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.kept.copy_(x)
        self.table.copy_(x)
        self.steps += 1
        between()
        return self.run((self.kept + self.table) * self.steps)


class MaxNorm(Base):
    """Scales the rows of a table down in place as it looks them up."""

    def prepare(self) -> None:
        self.table = nn.Embedding(8, WIDTH, max_norm=0.1)
        self.table.weight.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        between()
        return self.run(self.table(x[0, :1].abs().long()) * x)


class Unreadable(Base):
    """Its code has no source to read."""

    space: dict[str, Any] = {"between": between}  # noqa: RUF012
    exec("def forward(self, x):\n self.kept = x\n between()\n return self.run(self.kept)", space)
    forward = space["forward"]


SCRATCH: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: cls
    for cls in (
        Attribute,
        Counter,
        SetByName,
        Alias,
        Transient,
        Replaced,
        Persistent,
        Sliced,
        PlainTensor,
        Listed,
        Cached,
        Queued,
        Boxed,
        BoxAttribute,
        IntoChild,
        IntoParent,
        Helped,
        Method,
        Inherited,
        Decorated,
        Hooked,
        HookedByFunction,
        InASet,
        MaxNorm,
        Unreadable,
    )
}


class Hidden(Base):
    """Writes in ways that are not seen in its code; only what it wrote shows it."""

    def prepare(self) -> None:
        self.kept = torch.zeros(1, WIDTH)
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        operator.setitem(self.seen, "x", x)
        between()
        return self.run(self.seen["x"])


class HiddenInPlace(Base):
    """Writes into memory in a way that is not seen in its code."""

    def prepare(self) -> None:
        self.register_buffer("kept", torch.zeros(1, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        operator.methodcaller("copy_", x)(self.kept)
        between()
        return self.run(self.kept)


HIDDEN: dict[str, Callable[[], nn.Module]] = {cls.__name__: cls for cls in (Hidden, HiddenInPlace)}
