"""The versions of one module, each made from the one before.

A version shares every object with the one before that does not lead to what changed. So what a
reader does to a module it leases must not stay there: hooks are noticed as they are put on, other
changes by looking, and what was changed is copied anew. What a module's own forward writes is each
reader's own.
"""

import copy
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightledger.ledger.engines.counters import Rota
from weightledger.ledger.engines.graph import Graph, Unpathed
from weightledger.ledger.engines.hooks import HookTable
from weightledger.ledger.engines.intake import as_live
from weightledger.ledger.engines.paths import Content, copied, differing, paired

logger = logging.getLogger(__name__)

_AT_ONCE = 16
"""How many shared submodules an update looks at, for what readers did to them."""

_HOLDS = (dict, list, set, tuple, deque)

_TABLES = ("_parameters", "_buffers", "_modules")

Pairs = Mapping[int, Any]
Tensors = Mapping[str, torch.Tensor]
Private = Callable[[], nn.Module]
"""Makes a module of a version for one reader, who has to itself what its forward writes."""


@dataclass(frozen=True, slots=True)
class Built:
    """A next version: its module, and the objects and contents that are new in it, by number."""

    module: nn.Module
    objects: Mapping[int, Any]
    contents: Mapping[int, Content]
    base: int
    cleaned: frozenset[int] = frozenset()


class Line:
    """The versions of one module.

    `whole` copies `template` with deepcopy and these tensors in the places of `stand_ins`, and
    gives the copy and what it paired with the id of what; its second argument says whether other
    tensors are shared. `scratch` names, by submodule, the attributes that its forward writes.

    One writer at a time calls `build` and `adopt`; `lock` is held while the current version
    changes.
    """

    def __init__(
        self,
        template: nn.Module,
        stand_ins: Mapping[str, torch.Tensor],
        whole: Callable[[Tensors, bool], tuple[nn.Module, Pairs]],
        tensors: Tensors,
        scratch: Mapping[str, Collection[str]],
    ) -> None:
        self.lock = threading.RLock()
        self.dirty: set[int] = set()
        self._whole = whole
        self._base = 0
        self._scratch: dict[int, set[str]] = {}
        self._private: tuple[int, ...] = ()
        self.module, pairs = whole(tensors, True)
        self._graph: Graph | None = None
        try:
            graph = Graph(template, {id(t): name for name, t in stand_ins.items()})
            self._objects, self._contents = paired(graph, pairs, tensors, weakref.ref(self))
        except Unpathed as why:
            logger.info("each version will be a copy of the whole module: %s", why)
            self._written = {
                f"{name}.{key}" if name else key for name, keys in scratch.items() for key in keys
            }
            return
        self._graph = graph
        parts = dict(template.named_modules())
        self._names = {graph.numbers[id(part)]: name for name, part in parts.items()}
        self._rota = Rota(list(self._names), _AT_ONCE)
        self._constants = [
            (number, key, tensor, tensor._version)
            for number in self._names
            for key, tensor in self._constants_of(number)
        ]
        for name, keys in scratch.items():
            self._scratch[graph.numbers[id(parts[name])]] = set(keys)
        self._isolate()

    # The writer's

    def build(self, new: Tensors, tensors: Callable[[], Tensors]) -> Built:
        """The next version, with `new` tensors in it; `tensors` gives all it has then."""
        graph = self._graph
        if graph is None:
            with torch.no_grad():  # a module may have its own way of being copied
                return Built(self._whole(tensors(), True)[0], {}, {}, self._base)
        with self.lock:
            dirty = frozenset(self.dirty | self._flipped())
            if len(new) == 1 and not dirty:
                numbers = graph.ways(next(iter(new)))
            else:
                numbers = graph.above({n for name in new for n in graph.ways(name)} | dirty)
            objects, contents = copied(graph, numbers, self._contents, new, weakref.ref(self))
            return Built(objects.get(0, self.module), objects, contents, self._base, dirty)

    def renewed(self) -> Built:
        """The current version again, without what readers left in it."""
        return self.build({}, dict)

    def adopt(self, built: Built) -> bool:
        """Make a version that `build` gave the current one; False, changing nothing, if another
        has become it since."""
        with self.lock:
            if built.base != self._base:
                return False
            self._base += 1
            self.module = built.module
            if self._graph is not None:
                self._objects.update(built.objects)
                self._contents.update(built.contents)
                self.dirty -= built.cleaned
            return True

    def private(self, tensors: Callable[[], Tensors]) -> Private | None:
        """How each reader of the current version gets a module; None where they may share one."""
        graph, numbers = self._graph, self._private
        if graph is None:
            return (lambda: self._whole_private(tensors())) if self._written else None
        if not numbers:
            return None
        contents = {number: self._contents[number] for number in numbers}
        scratch = {number: frozenset(keys) for number, keys in self._scratch.items()}
        owner = weakref.ref(self)

        def private() -> nn.Module:
            objects, _ = copied(graph, numbers, contents, {}, owner)
            for number, keys in scratch.items():
                _own_scratch(objects[number], graph, number, keys)
            module: nn.Module = objects[0]
            return module

        return private

    def _whole_private(self, tensors: Tensors) -> nn.Module:
        with torch.inference_mode(False), torch.no_grad():
            own = {
                name: as_live(t, t.detach().clone())
                for name, t in tensors.items()
                if name in self._written or not isinstance(t, nn.Parameter)
            }
            return self._whole({**tensors, **own}, False)[0]

    # What readers and forwards leave behind

    def noticed(self, number: int, table: HookTable) -> None:
        """A reader put a hook on a module, or took one off."""
        with self.lock:
            held = vars(self._objects[number])
            if any(one is table for one in held.values()):
                self.dirty.add(number)

    def look(self) -> bool:
        """Look at every shared object for what was written into it; True if there was something.

        A module that was written to is taken to be one whose forward does that.
        """
        graph = self._graph
        if graph is None:
            return False
        with self.lock:
            written = {
                number: {str(key) for key in odd}
                for number in self._names
                if (odd := self._differing(graph, number))
            }
            for number, key, tensor, count in self._constants:
                if number not in self._scratch and tensor._version != count:
                    written.setdefault(number, set()).add(key)
            for number, keys in written.items():
                self._report(number, keys)
                self._scratch.setdefault(number, set()).update(keys - {"training"})
            self.dirty.update(written)
            if written:
                self._isolate()
        return bool(written)

    def _differing(self, graph: Graph, number: int) -> list[Any]:
        if number in self._private:
            return []  # no reader ever gets the version's own
        odd = differing(graph.nodes[number], self._objects[number], self._contents[number])
        for table in _TABLES:
            inner = graph.numbers.get(id(vars(graph.nodes[number].value).get(table)))
            if inner is not None:
                odd += differing(graph.nodes[inner], self._objects[inner], self._contents[inner])
        return odd

    def _report(self, number: int, keys: Iterable[str]) -> None:
        logger.warning(
            "submodule %r was written to (%s): from now on each reader gets its own",
            self._names[number],
            ", ".join(sorted(keys)),
        )

    def _flipped(self) -> set[int]:
        """Modules that a reader put into another mode: all of them where the outermost one is."""
        modules: Iterable[int] = self._names if self._is_flipped(0) else self._rota.turn()
        return {number for number in modules if self._is_flipped(number)}

    def _is_flipped(self, number: int) -> bool:
        held, put = vars(self._objects[number]), self._contents[number]
        return held.get("training") is not put.get("training")

    def _isolate(self) -> None:
        """Work out which objects each reader has to get for itself."""
        graph = self._graph
        assert graph is not None
        numbers = set(self._scratch)
        for number, keys in self._scratch.items():
            held = vars(graph.nodes[number].value)
            inner = [held.get(key) for key in (*_TABLES, *keys)]
            numbers |= {graph.numbers[id(one)] for one in inner if id(one) in graph.numbers}
        self._private = graph.above(numbers)

    def _constants_of(self, number: int) -> list[tuple[str, torch.Tensor]]:
        """Tensors of a module that are not of its state."""
        held = vars(self._objects[number])
        transient = held.get("_non_persistent_buffers_set", ())
        own = [(key, held["_buffers"][key]) for key in transient if key in held["_buffers"]]
        own += held.items()
        return [(key, value) for key, value in own if isinstance(value, torch.Tensor)]


def _own_scratch(module: nn.Module, graph: Graph, number: int, keys: Collection[str]) -> None:
    """Give a reader's module memory of its own where its forward writes: buffers, tensors that are
    no parameters, and what `keys` name."""
    held, original = vars(module), vars(graph.nodes[number].value)
    buffers, parameters = held["_buffers"], held["_parameters"]
    with torch.inference_mode(False), torch.no_grad():
        for table, names in ((held, held), (buffers, buffers), (parameters, keys)):
            for key in names:
                value = table.get(key)
                if isinstance(value, torch.Tensor):
                    table[key] = as_live(value, value.detach().clone())
        for key in keys:
            value = original.get(key)
            copied_already = isinstance(value, torch.Tensor) or id(value) in graph.numbers
            if not copied_already and (hasattr(value, "__dict__") or isinstance(value, _HOLDS)):
                held[key] = copy.deepcopy(value)
