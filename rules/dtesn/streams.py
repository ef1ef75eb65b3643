"""Activities of the live engine, seen by forward hooks while a declared stream is open.

    stream = integration.open_stream("camera-7", "fc.weight")
    with stream.lease() as live:
        live.module(images)
    await integration.close_stream("camera-7", rule="oja")

The hooks sit on a copy of the module's structure that shares the live tensors and belongs to the
stream, so other readers of the same version are neither slowed down nor overheard.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from weightledger import DynamicModelManager
from weightledger.rules.dtesn.gate import SCORED
from weightledger.rules.errors import RuleError, UnknownStream
from weightledger.rules.protocol import Rule

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ObservedVersion:
    """A live version to infer with, whose activities the stream sees."""

    module: torch.nn.Module
    seq: int
    digest: bytes


class Stream:
    """One open stream: the input and output of one parameter's layer, in the order they came."""

    def __init__(
        self,
        manager: DynamicModelManager,
        name: str,
        parameter: str,
        *,
        limit: int,
        closes_at: float,
        clock: Clock,
    ) -> None:
        self.name = name
        self.parameter = parameter
        self._manager = manager
        self._layer = parameter.rpartition(".")[0]
        self._limit = limit
        self._closes_at = closes_at
        self._clock = clock
        self._x: list[torch.Tensor] = []
        self._y: list[torch.Tensor] = []
        self._samples = 0
        self._seqs: list[int] = []

    @property
    def expired(self) -> bool:
        """Whether it was open for too long."""
        return self._clock() >= self._closes_at

    @contextlib.contextmanager
    def lease(self) -> Iterator[ObservedVersion]:
        """Infer with the live version; what the layer does in the block belongs to the stream."""
        if self.expired:
            raise UnknownStream(f"stream {self.name!r} has expired: open it again", param="stream")
        with self._manager.lease() as live:
            tensors = [*live.module.parameters(), *live.module.buffers()]
            module = copy.deepcopy(live.module, {id(tensor): tensor for tensor in tensors})
            layer = module.get_submodule(self._layer)
            layer.register_forward_hook(self._hook)
            self._seqs.append(live.seq)
            yield ObservedVersion(module, live.seq, live.digest)

    def activities(self) -> dict[str, torch.Tensor]:
        """`x` [samples, in] and `y` [samples, out] so far; RuleError when nothing was seen."""
        if not self._x:
            raise RuleError(f"stream {self.name!r} has seen no activity", param="stream")
        return {"x": torch.cat(self._x), "y": torch.cat(self._y)}

    def seen_by(self, rule: type[Rule], *, scored: bool) -> dict[str, torch.Tensor]:
        """What a rule wants of it, and what a gate scores with; spikes are what came and went."""
        seen = self.activities()
        if "pre_spikes" in rule.activities:
            seen |= {"pre_spikes": seen["x"], "post_spikes": seen["y"]}
        wanted = rule.activities.keys() | (set(SCORED) if scored else set())
        return {name: tensor for name, tensor in seen.items() if name in wanted}

    @property
    def facts(self) -> dict[str, Any]:
        """Which states of the model the activities came from."""
        return {"first_seq": self._seqs[0], "last_seq": self._seqs[-1], "samples": self._samples}

    def _hook(self, layer: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not inputs or not all(isinstance(t, torch.Tensor) for t in (inputs[0], output)):
            raise RuleError(f"layer {self._layer!r} does not map one tensor to one tensor")
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        y = output.detach().reshape(-1, output.shape[-1])
        if self._samples + len(x) > self._limit:
            raise RuleError(
                f"stream {self.name!r} holds {self._limit} samples at most: close it sooner",
                param="stream",
            )
        self._samples += len(x)
        self._x.append(x.clone())
        self._y.append(y.clone())


class Streams:
    """The open streams of one model, by name."""

    def __init__(self, manager: DynamicModelManager, limit: int, ttl_s: float, clock: Clock):
        self._manager = manager
        self._limit = limit
        self._ttl_s = ttl_s
        self._clock = clock
        self._open: dict[str, Stream] = {}
        self._expired: dict[str, None] = {}

    def open(self, name: str, parameter: str) -> Stream:
        """A new stream; RuleError when one of this name is open."""
        self._expire()
        if name in self._open:
            raise RuleError(f"stream {name!r} is open already", param="stream")
        self._expired.pop(name, None)
        stream = Stream(
            self._manager,
            name,
            parameter,
            limit=self._limit,
            closes_at=self._clock() + self._ttl_s,
            clock=self._clock,
        )
        self._open[name] = stream
        return stream

    def take(self, name: str) -> Stream:
        """Close a stream; UnknownStream when it is not open."""
        self._expire()
        stream = self._open.pop(name, None)
        if stream is None:
            why = (
                "was not closed in time and has expired" if name in self._expired else "is not open"
            )
            raise UnknownStream(f"stream {name!r} {why}: open it again", param="stream")
        return stream

    def put_back(self, stream: Stream) -> None:
        """Open again what was taken, with all it has seen, unless another took its name."""
        self._open.setdefault(stream.name, stream)

    def names(self) -> list[str]:
        """Those that are open."""
        self._expire()
        return list(self._open)

    def _expire(self) -> None:
        """Let go of what streams that were never closed have seen; their names are remembered."""
        for name in [name for name, stream in self._open.items() if stream.expired]:
            del self._open[name]
            self._expired[name] = None
        while len(self._expired) > 1024:
            del self._expired[next(iter(self._expired))]
