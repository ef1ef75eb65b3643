"""Versions copy the ways to what changes and share the rest; what readers do stays with them."""

import copy
import functools
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conformance.engine_models import KINDS, Kind, mlp, ramp
from tests.conformance.test_engines import fresh, infer, live_output, put, started, state_of, values
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.engines import counters, line
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.tensors import state

# What is copied and what is shared


def blocks(count: int) -> nn.Module:
    return nn.Sequential(
        *[nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(count)]
    )


def test_the_work_of_an_update_does_not_grow_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: dict[str, list[int]] = {"copied": [], "checked": [], "hashed": [], "rows": []}

    def counting(name: str, module: Any, attribute: str, size: Callable[..., int]) -> None:
        original = getattr(module, attribute)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            work[name].append(size(result, *args))
            return result

        monkeypatch.setattr(module, attribute, wrapper)

    counts = {}
    for blocks_count in (10, 400):
        with Ledger.open(f"sqlite:///{tmp_path}/{blocks_count}.db") as ledger:
            log = ledger.model("m", engine=TorchEngine(blocks(blocks_count)))
            with monkeypatch.context() as patched:
                monkeypatch = patched
                counting("copied", line, "copied", lambda result, *_: len(result[0]))
                counting("checked", counters, "_marks", lambda result, *_: len(result))
                counting("hashed", state, "blake3", lambda _, text, *more: len(text))
                patched.setattr(copy, "deepcopy", None)
                for number in range(8):
                    name = f"{number}.2.weight"
                    log.apply(IncrementalUpdateRequest(name, 1.0, 0.001))
        counts[blocks_count] = {name: max(sizes, default=0) for name, sizes in work.items()}
        for sizes in work.values():
            sizes.clear()
    assert counts[400]["copied"] == counts[10]["copied"] == 6
    assert counts[400]["checked"] <= counters.AT_ONCE + 1
    assert counts[10]["hashed"] > 0
    assert counts[400]["hashed"] == 0  # a tree is kept


def test_what_does_not_lead_to_a_change_is_the_same_object_in_all_versions() -> None:
    engine = started(TorchEngine, blocks(5))
    one = engine.lease().module
    put(engine, {"3.2.bias": torch.ones(2)}, 1)
    other = engine.lease().module
    shared = {name for name, part in other.named_modules() if part is one.get_submodule(name)}
    assert shared == {name for name, _ in one.named_modules()} - {"", "3", "3.2"}
    assert one[3][2].weight is other[3][2].weight
    assert one[3][2].bias is not other[3][2].bias


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_is_copied_along_its_ways(kind: Kind) -> None:
    engine = started(TorchEngine, kind.make())
    assert engine._line._graph is not None
    names = list(engine.specs())
    for seq, name in enumerate(names * 2, 1):
        before = state_of(engine)
        new = values(engine, seq, [name])
        put(engine, {n: t.clone() for n, t in new.items()}, seq)
        assert live_output(engine, kind) == infer(fresh(kind, before | new), kind.given)


def test_models_are_copied_along_their_ways_once_torch_has_compiled_some() -> None:
    """Compiling patches every module of the process."""
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.ones(1, 2))
    assert started(TorchEngine, mlp())._line._graph is not None


class Circular(nn.Module):
    """Objects that refer to one another in every way that is followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        box: Any = type("Box", (), {})
        self.box = box()
        self.box.owner = self
        self.box.parts = OrderedDict(b=[(self.b, {"weight": self.b.weight})])
        self.box.parts["self"] = self.box.parts
        self.ask = functools.partial(self.forward_b, scale=self.a.bias)
        self.again = (self.ask, [self.forward_b])

    def forward_b(self, x: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.box.owner.box.parts["self"]["b"][0][0](x) * scale
        return out @ self.box.parts["b"][0][1]["weight"]

    def forward(self, x: Tensor) -> Tensor:
        return self.again[0](self.a(x)) + self.again[1][0](x, 1.0)


def test_circles_partials_tuples_and_methods_follow_the_version() -> None:
    kind = Kind(Circular, ramp(3, 4))
    engine = started(TorchEngine, kind.make())
    assert engine._line._graph is not None
    held = []
    for seq, name in enumerate([*engine.specs()] * 2, 1):
        before = state_of(engine)
        held.append((engine.lease(), live_output(engine, kind)))
        new = values(engine, seq, [name])
        put(engine, {n: t.clone() for n, t in new.items()}, seq)
        assert live_output(engine, kind) == infer(fresh(kind, before | new), kind.given)
    assert all(infer(lease.module, kind.given) == output for lease, output in held)


# Where a way leads through what cannot be copied by hand


class Slotted:
    __slots__ = ("part",)


def _in_a_set(module: Any) -> None:
    module.held = {module[0]}


def _in_a_deque(module: Any) -> None:
    module.held = deque([module[0].weight])


def _as_a_key(module: Any) -> None:
    module.held = {module[0]: 1}


def _in_a_slot(module: Any) -> None:
    module.held = Slotted()
    module.held.part = module[0]


class OwnState(nn.Linear):
    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _with_own_state(module: Any) -> None:
    module[0].__class__ = OwnState


@pytest.mark.parametrize(
    "change",
    [_in_a_set, _in_a_deque, _as_a_key, _in_a_slot, _with_own_state],
    ids=lambda change: change.__name__.strip("_"),
)
def test_other_structures_are_copied_whole(change: Callable[[Any], None]) -> None:
    def make() -> nn.Module:
        module = mlp()
        change(module)
        return module

    kind = Kind(make, ramp(5, 4))
    engine = started(TorchEngine, make())
    assert engine._line._graph is None
    old = engine.lease()
    before = live_output(engine, kind)
    new = values(engine, 1)
    put(engine, {n: t.clone() for n, t in new.items()}, 1)
    assert live_output(engine, kind) == infer(fresh(kind, new), kind.given)
    assert infer(old.module, kind.given) == before


# What readers do to the modules they lease


def _hook(module: Any) -> Any:
    return module[2].register_forward_hook(lambda *_: torch.zeros(5, 3))


def _first_hook(module: Any) -> Any:
    return module[2].register_forward_hook(lambda *_: torch.zeros(5, 3), prepend=True)


def _hook_with_keywords(module: Any) -> Any:
    return module[2].register_forward_hook(lambda *_: torch.zeros(5, 3), with_kwargs=True)


def _pre_hook(module: Any) -> Any:
    return module[2].register_forward_pre_hook(lambda *_: (torch.zeros(5, 8),))


def _hook_on_all(module: Any) -> Any:
    for part in module.modules():
        handle = part.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    return handle


HOOKS = [_hook, _first_hook, _hook_with_keywords, _pre_hook, _hook_on_all]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__.strip("_"))
@pytest.mark.parametrize("published", ["before", "after", "in between"])
def test_a_hook_on_a_lease_is_in_no_later_version(
    hook: Callable[[Any], Any], published: str
) -> None:
    """Whether the next version is published before, after, or was only prepared before the hook."""
    kind = KINDS["mlp"]
    engine = started(TorchEngine, kind.make())
    expected = live_output(engine, kind)
    held = engine.lease()
    same = {"0.bias": engine.tensor("0.bias").detach().clone()}
    prepared = engine.prepare(same)
    if published == "before":
        engine.publish(prepared, seq=1, digest=b"")
    hook(held.module)
    if published == "in between":
        engine.publish(prepared, seq=1, digest=b"")
    assert infer(held.module, kind.given) != expected
    assert live_output(engine, kind) == expected
    for seq in range(2, 6):
        put(engine, same, seq)
        assert live_output(engine, kind) == expected
    assert infer(held.module, kind.given) != expected
    with engine.lease() as live:
        assert not any(p._forward_hooks or p._forward_pre_hooks for p in live.module.modules())


def test_taking_off_the_models_own_hook_is_in_no_later_version() -> None:
    kind = KINDS["hooks"]
    engine = started(TorchEngine, kind.make().eval())
    expected = live_output(engine, kind)
    held = engine.lease()
    held.module.a._forward_hooks.clear()
    assert infer(held.module, kind.given) != expected
    assert live_output(engine, kind) == expected
    put(engine, {"b.weight": engine.tensor("b.weight").detach().clone()}, 1)
    assert live_output(engine, kind) == expected


def test_a_hook_on_an_old_version_makes_no_new_module_of_the_live_one() -> None:
    engine = started(TorchEngine, mlp())
    held = engine.lease()
    put(engine, values(engine, 1), 1)
    live = engine.lease().module
    _hook(held.module)
    assert engine.lease().module is live


def test_another_mode_on_a_lease_is_in_no_later_version() -> None:
    kind = KINDS["batchnorm"]
    engine = started(TorchEngine, kind.make())
    same = {"0.bias": engine.tensor("0.bias").detach().clone()}
    expected = live_output(engine, kind)
    engine.lease().module.train()
    put(engine, same, 1)
    assert live_output(engine, kind) == expected
    engine.lease().module[2].train()
    put(engine, same, 2)
    assert live_output(engine, kind) == expected
    engine.lease().module[2].train()
    engine.check_untouched()  # as a process that only follows does
    assert live_output(engine, kind) == expected


def _attribute(module: Any) -> None:
    module[2].forward = lambda x: torch.zeros(5, 3)


def _part(module: Any) -> None:
    module[2] = nn.Linear(8, 3)


def _parameter(module: Any) -> None:
    module[2].bias = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize("change", [_attribute, _part, _parameter])
def test_other_changes_to_a_lease_are_found_and_cleared_away(change: Callable[[Any], None]) -> None:
    kind = KINDS["mlp"]
    engine = started(TorchEngine, kind.make())
    expected = live_output(engine, kind)
    held = engine.lease()
    change(held.module)
    changed = infer(held.module, kind.given)
    assert changed != expected
    engine.check_untouched()
    assert live_output(engine, kind) == expected
    put(engine, {"0.bias": engine.tensor("0.bias").detach().clone()}, 1)
    assert live_output(engine, kind) == expected
    assert infer(held.module, kind.given) == changed


def test_an_rnn_of_a_later_version_does_not_look_for_its_weights_anew() -> None:
    """It would do so in every forward, and write what it has found into a module that is shared."""
    kind = KINDS["lstm"]
    engine = started(TorchEngine, kind.make())
    for seq in (1, 2):
        put(engine, values(engine, seq), seq)
        with engine.lease() as live:
            recurrent = [part for part in live.module.modules() if isinstance(part, nn.RNNBase)]
            assert recurrent and not any(part._weights_have_changed() for part in recurrent)


class Noted(nn.Linear):
    """Keeps settings in containers, which lead to no tensor."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.empty: dict[str, float] = {}
        self.settings = {"scale": 1.0}
        self.nested: dict[str, list[Any]] = {"scales": [1.0]}
        self.nested["scales"].append(self.nested)  # in a circle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.empty.get("scale", 1.0) * self.settings["scale"]
        return super().forward(x) * scale * self.nested["scales"][0]


def _add(part: Noted) -> None:
    part.empty["scale"] = 0.0


def _set(part: Noted) -> None:
    part.settings["scale"] = 0.0


def _set_within(part: Noted) -> None:
    part.nested["scales"][0] = 0.0


@pytest.mark.parametrize("change", [_add, _set, _set_within])
@pytest.mark.parametrize("copied", [True, False], ids=["on the way", "beside it"])
def test_what_a_reader_puts_into_a_container_is_in_no_later_version(
    change: Callable[[Any], None], *, copied: bool
) -> None:
    engine = started(TorchEngine, nn.Sequential(Noted(), nn.Linear(4, 3)))
    given = ramp(5, 4)
    names = ["0.bias" if copied else "1.bias"]

    def same(seq: int) -> None:
        put(engine, {name: engine.tensor(name).detach().clone() for name in names}, seq)

    same(1)
    with engine.lease() as live:
        expected = infer(live.module, given)
    held = engine.lease()
    change(held.module[0])
    assert infer(held.module, given) != expected
    engine.check_untouched()
    for seq in (2, 3):
        with engine.lease() as live:
            assert infer(live.module, given) == expected
        same(seq)
    with engine.lease() as live:
        assert infer(live.module, given) == expected


def test_a_version_can_be_copied_and_saved_with_its_hook_tables() -> None:
    module = started(TorchEngine, mlp()).lease().module
    copied = copy.deepcopy(module)
    assert type(copied[0]._forward_hooks) is OrderedDict
    assert infer(copied, ramp(5, 4)) == infer(module, ramp(5, 4))
