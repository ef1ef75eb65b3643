"""Random histories of adapters, as an independent program knows them: what a folder holds is read
from its bytes, and what a merge makes of the base is what PEFT makes of a model with plain arrays.
"""

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.debug.arrays import Bits, State, Truth, shown
from tests.lora import save_adapter
from weightledger import IncrementalUpdateRequest, Log
from weightledger.ledger.errors import InvalidRequest, NotFound

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NAMES = ("a", "b", "é")
KINDS = ("load", "load", "reload", "unload", "merge", "update", "record", "back", "name")
WEIGHTS = "adapter_model.safetensors"
GIVEN = torch.tensor([[0, 30, 94, 87, 12, 200]])


def in_folder(name: str, folder: Path) -> State:
    """What loading a folder adds to a state, by the formats' own descriptions."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    state: State = {}
    for key, said in header.items():
        if key == "__metadata__" or ".base_layer." in key:
            continue
        start, end = said["data_offsets"]
        dtype = "torch." + DTYPES[said["dtype"]]
        state[f"adapter/{name}/{key}"] = Bits(dtype, tuple(said["shape"]), body[start:end])
    config = json.loads((folder / "adapter_config.json").read_text())
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    state[f"adapter/{name}/config"] = Bits("torch.uint8", (len(text),), text)
    return state


def of_adapters(state: State) -> dict[str, State]:
    """A state's adapters, each under the name `x`, as folders are compared with them."""
    found: dict[str, State] = {}
    for full, bits in state.items():
        if full.startswith("adapter/"):
            _, name, key = full.split("/", 2)
            found.setdefault(name, {})[f"adapter/x/{key}"] = bits
    return found


@dataclass(frozen=True)
class Family:
    """A model, and adapters for it in folders that PEFT wrote: some differ in one matrix only."""

    base: Callable[[], Any]
    folders: Mapping[str, Path]
    tied: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        root: Path,
        base: Callable[[], Any],
        fields: Mapping[str, Mapping[str, Any]],
        tied: tuple[str, ...] = (),
    ) -> "Family":
        folders: dict[str, Path] = {}
        for seed, (name, more) in enumerate(fields.items()):
            folder = save_adapter(root / name, seed, base=base(), **more)
            near = save_adapter(root / f"{name}-near", seed, base=base(), **more)
            tensors = load_file(near / WEIGHTS)
            key = next(key for key in sorted(tensors) if ".base_layer." not in key)
            save_file(tensors | {key: tensors[key] * 2}, near / WEIGHTS)
            folders |= {name: folder, f"{name}-near": near}
        return cls(base, folders, tied)

    def module(self, state: State) -> Any:
        """The model with a state's weights."""
        module = self.base()
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name in state:
                    tensor.copy_(array(state[name]))
        return module

    def adapted(self, state: State, folder: Path) -> Any:
        """The model with a state's weights, through a folder's adapter, by PEFT."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(self.module(state), own(folder)).eval()

    def merged(self, state: State, folder: Path) -> State:
        """The weights once an adapter is merged, by PEFT."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = self.adapted(state, folder).merge_and_unload().state_dict()
        weights = {name: bits for name, bits in state.items() if not name.startswith("adapter/")}
        return {name: Bits.of(tensors[name]) for name in weights}


def own(folder: Path) -> Path:
    """The folder without weights of the base, which would be put in the place of the model's."""
    tensors = load_file(folder / WEIGHTS)
    kept = {key: one for key, one in tensors.items() if ".base_layer." not in key}
    if len(kept) == len(tensors):
        return folder
    other = folder.with_name(folder.name + ".own")
    if not other.exists():
        other.mkdir()
        (other / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
        save_file(kept, other / WEIGHTS)
    return other


def array(bits: Bits) -> torch.Tensor:
    dtype = getattr(torch, bits.dtype.removeprefix("torch."))
    if not bits.bits:
        return torch.zeros(bits.shape, dtype=dtype)
    return torch.frombuffer(bytearray(bits.bits), dtype=dtype).reshape(bits.shape)


def finite(state: State) -> bool:
    return all(
        bool(torch.isfinite(array(bits)).all())
        for name, bits in state.items()
        if not name.startswith("adapter/")
    )


def outputs(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        out = module(GIVEN)
        first: torch.Tensor = out[0]
        return first


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(7.0, 8.0, 9.0), other.nan_to_num(7.0, 8.0, 9.0))


Moved = tuple[State, dict[str, str]]
"""A state, and which folder each of its adapters is from."""


@dataclass(frozen=True)
class Step:
    """What an event does to any state; None where it would be refused there.

    `again` says that it can be worked out on other states: a recording cannot.
    """

    kind: str
    do: Callable[[State, dict[str, str]], Moved | None]
    again: bool = True


@dataclass
class Adapted:
    """A truth with adapters: what each event does, and which folder each adapter is from."""

    family: Family
    truth: Truth
    from_: dict[int, dict[str, str]] = field(default_factory=lambda: {0: {}})
    steps: dict[int, Step] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.truth.states[self.truth.head]

    @property
    def loaded(self) -> dict[str, str]:
        return self.from_[self.truth.head]

    def step(self, log: Log, random_: random.Random, kinds: Sequence[str] = KINDS) -> None:
        """One thing of many, which is expected first and done afterwards."""
        what = random_.choice(kinds)
        self.counts[what] = self.counts.get(what, 0) + 1
        getattr(self, f"_{what}")(log, random_)
        log.catch_up()  # what is refused need not know what others wrote
        assert shown(log) == self.state, what

    def _took(self, seq: int, step: Step) -> None:
        truth, moved = self.truth, step.do(self.state, self.loaded)
        assert moved is not None
        truth.parents[seq], truth.head = truth.head, seq
        truth.states[seq], self.from_[seq] = moved
        self.steps[seq] = step

    def _load(self, log: Log, random_: random.Random) -> None:
        name, source = random_.choice(NAMES), random_.choice(sorted(self.family.folders))
        if name in self.loaded:
            refused(InvalidRequest, lambda: log.load_adapter(name, self.family.folders[source]))
            return
        self._put(log, name, source, inplace=random_.random() < 0.3)

    def _reload(self, log: Log, random_: random.Random) -> None:
        name = random_.choice(sorted(self.loaded) or ["a"])
        sources = sorted(self.family.folders)
        if name in self.loaded and random_.random() < 0.6:
            stem = self.loaded[name].removesuffix("-near")
            sources = [one for one in sources if one.removesuffix("-near") == stem]
        self._put(log, name, random_.choice(sources), inplace=True)

    def _put(self, log: Log, name: str, source: str, *, inplace: bool) -> None:
        folder = self.family.folders[source]
        brought = base_of(folder)
        if any(self.state[weight] != bits for weight, bits in brought.items()):
            refused(InvalidRequest, lambda: log.load_adapter(name, folder, inplace=inplace))
            return
        event = log.load_adapter(name, folder, inplace=inplace)
        assert event.body["replaced"] == (name in self.loaded)

        def do(state: State, loaded: dict[str, str]) -> Moved:
            return without(name, state) | in_folder(name, folder), loaded | {name: source}

        self._took(event.seq, Step("load", do))

    def _unload(self, log: Log, random_: random.Random) -> None:
        name = random_.choice(NAMES)
        if name not in self.loaded:
            refused(NotFound, lambda: log.unload_adapter(name))
            return

        def do(state: State, loaded: dict[str, str]) -> Moved:
            return without(name, state), {one: loaded[one] for one in loaded if one != name}

        self._took(log.unload_adapter(name).seq, Step("unload", do))

    def _merge(self, log: Log, random_: random.Random) -> None:
        name, unload = random_.choice(NAMES), random_.random() < 0.6
        if name not in self.loaded:
            refused(NotFound, lambda: log.merge_adapter(name, unload=unload))
            return
        folder = self.family.folders[self.loaded[name]]
        if any(tie in key for tie in self.family.tied for key in in_folder("x", folder)):
            refused(InvalidRequest, lambda: log.merge_adapter(name, unload=unload))
            return

        def do(state: State, loaded: dict[str, str]) -> Moved | None:
            if name not in loaded:
                raise CannotBe(name)
            source = self.family.folders[loaded[name]]
            merged = self.family.merged(state, source)
            if not finite({one: bits for one, bits in merged.items() if bits != state[one]}):
                return None
            beside = {full: bits for full, bits in state.items() if full.startswith("adapter/")}
            left = {one: loaded[one] for one in loaded if not unload or one != name}
            return merged | (without(name, beside) if unload else beside), left

        event = log.merge_adapter(name, unload=unload)
        if do(self.state, self.loaded) is None:
            assert event.kind == "update_rejected"
            return
        assert event.kind == "updated", event.body
        self._took(event.seq, Step("merge", do))

    def _update(self, log: Log, random_: random.Random) -> None:
        name = random_.choice(weights(self.state))
        index = random_.choice([None, random_.randrange(self.state[name].shape[0])])
        value, kind = random_.choice([0.0, 0.5, -2.0]), random_.choice(["replace", "additive"])

        def do(state: State, loaded: dict[str, str]) -> Moved | None:
            tensor = array(state[name]).clone()
            flat = tensor.view(-1)
            part = flat if index is None else flat[index : index + 1]
            after = torch.full_like(part, value) if kind == "replace" else part.double() + value
            part.copy_(after.float().to(part.dtype))
            if not bool(torch.isfinite(part).all()):
                return None
            return state | {name: Bits.of(tensor)}, loaded

        indices = None if index is None else [index]
        event = log.apply(IncrementalUpdateRequest(name, value, 1.0, kind, indices=indices))
        if do(self.state, self.loaded) is None:
            assert event.kind == "update_rejected"
            return
        assert event.kind == "updated", event.body
        self._took(event.seq, Step("update", do))

    def _record(self, log: Log, random_: random.Random) -> None:
        """Random bits in an element: NaNs, infinities, denormals."""
        names = weights(self.state)
        name = random_.choice(names)
        data, was = bytearray(self.state[name].bits), self.state[name]
        size = 2 if "16" in was.dtype else 4
        at = size * random_.randrange(len(data) // size)
        data[at : at + size] = random_.randbytes(size)
        bits = Bits(was.dtype, was.shape, bytes(data))
        event = log.record({one: array(self.state[one]) for one in names} | {name: array(bits)})

        def do(state: State, loaded: dict[str, str]) -> Moved:
            return state | {name: bits}, loaded

        self._took(event.seq, Step("record", do, again=False))

    def _back(self, log: Log, random_: random.Random) -> None:
        truth = self.truth
        to = random_.choice(truth.seqs)
        seq = log.rollback(f"seq:{to}").seq
        truth.led_to[seq], truth.left[seq] = truth.node(to), truth.head
        truth.head = truth.node(to)
        truth.states[seq], self.from_[seq] = truth.states[to], self.from_[to]

    def _name(self, log: Log, random_: random.Random) -> None:
        event = log.create_version("named")
        self.truth.versions |= {0: 0} if not self.truth.versions else {}
        self.truth.versions[int(event.number or 0)] = self.truth.head

    def shows(self, log: Log) -> None:
        """What is served through each adapter and beside them is what PEFT computes."""
        engine: Any = log.engine
        with engine.lease() as live:
            assert sorted(live.adapted) == sorted(self.loaded)
            assert alike(outputs(live.module), outputs(self.family.module(self.state)))
            for name, source in self.loaded.items():
                theirs = self.family.adapted(self.state, self.family.folders[source])
                assert alike(outputs(live.adapted[name].leased()), outputs(theirs)), name
        assert sorted(log.adapters) == sorted(self.loaded)

    def derived(self, at: int, out: Sequence[int]) -> State | None:
        """The state with all events but some done again; None where that cannot be."""
        way = self.truth.way(at)
        moved: Moved = self.truth.states[0], {}
        if not all(self.steps[seq].again for seq in way[1:] if seq >= min(out)):
            return None
        for seq in way[1:]:
            if seq in out:
                continue
            try:
                moved = self.steps[seq].do(*moved) or moved
            except CannotBe:
                return None
        return moved[0]


class CannotBe(Exception):
    """A merge of an adapter that a state does not have."""


def refused(error: type[Exception], what: Callable[[], Any]) -> None:
    with pytest.raises(error):
        what()


def without(name: str, state: State) -> State:
    return {full: one for full, one in state.items() if not full.startswith(f"adapter/{name}/")}


def weights(state: State) -> list[str]:
    return sorted(name for name in state if not name.startswith("adapter/"))


def base_of(folder: Path) -> State:
    """The weights of the base that a folder brings along, by the model's names."""
    return {
        key.removeprefix("base_model.model.").replace(".base_layer.", "."): Bits.of(tensor)
        for key, tensor in load_file(folder / WEIGHTS).items()
        if ".base_layer." in key
    }
