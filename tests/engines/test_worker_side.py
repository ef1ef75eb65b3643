"""What a worker reads and holds, without a server: staged whole, loaded once, never by mistake."""

import abc
import importlib
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.replica import MODEL, QUERY, update
from tests.engines.tiny_model import checkpoint
from weightledger import Ledger
from weightledger.ledger.engines.vllm import StateRef
from weightledger.ledger.engines.vllm.fused import whole_groups
from weightledger.ledger.engines.vllm.reading import DATABASE
from weightledger.ledger.engines.vllm.staging import Instruction, Staging
from weightledger.ledger.errors import (
    CorruptLedger,
    InvalidRequest,
    LedgerError,
    NotFound,
    StorageError,
    WeightsMismatch,
)
from weightledger.ledger.events import Event
from weightledger.ledger.history import steps

ROOT = Path(__file__).parents[2]
NAMES = [
    "model.embed.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.experts.0.w1.weight",
    "model.layers.1.mlp.experts.7.w2.weight",
    "model.layers.1.mlp.gate.weight",
    "norm",
]


@pytest.mark.parametrize(
    ("changed", "sent"),
    [([4], [1, 2, 3, 4]), ([7], [6, 7]), ([5], [5]), ([10], [9, 10]), ([11], [11]), ([12], [12])],
)
def test_whole_modules_are_sent(changed: list[int], sent: list[int]) -> None:
    assert whole_groups([NAMES[i] for i in changed], NAMES) == [NAMES[i] for i in sent]


def test_a_model_of_its_own_kind_says_what_it_fuses() -> None:
    packed = {"embed_norm": ["embed", "norm"]}
    assert whole_groups(["a.norm.x"], ["a.embed.x", "a.norm.x", "b.embed.x"], packed) == [
        "a.embed.x",
        "a.norm.x",
    ]


class Ledgered:
    """A ledger with two updates, and what the driver would ask a worker."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'ledger.db'}"
        with Ledger.open(self.url) as ledger:
            log = ledger.model(MODEL, base=checkpoint())
            log.apply(update(1))
            log.apply(update(2))
            self.events: list[Event] = log.history.events(newest_first=False)
            self.state = [log.state(f"seq:{seq}") for seq in range(3)]

    def target(self, seq: int) -> StateRef:
        return StateRef(seq, self.events[seq].state_after)

    def stage(self, seq: int, names: list[str] | None = None, since: int = 0) -> Instruction:
        digest = self.events[seq].state_after.hex()
        before = self.events[since].state_after.hex()
        return Instruction("stage", MODEL, seq, digest, self.url, names, before)


@pytest.fixture
def ledgered(folder: Path) -> Ledgered:
    return Ledgered(folder)


def test_every_state_is_read_as_the_ledger_has_it(ledgered: Ledgered) -> None:
    for seq in (2, 0, 1):
        staging, got = Staging(), {}
        staging.follow(ledgered.stage(seq))
        staging.load(ledgered.target(seq), got.update)
        assert got.keys() == ledgered.state[seq].keys()
        assert all(torch.equal(got[name], ledgered.state[seq][name]) for name in got)


def test_a_part_is_staged_only_on_top_of_the_state_it_changes(ledgered: Ledgered) -> None:
    staging, got = Staging(), {}
    with pytest.raises(WeightsMismatch, match="its own weights"):
        staging.follow(ledgered.stage(1, [QUERY]))
    staging.follow(ledgered.stage(0))
    staging.load(ledgered.target(0), lambda tensors: None)
    with pytest.raises(WeightsMismatch, match="it needs every tensor"):
        staging.follow(ledgered.stage(2, [QUERY], since=1))
    staging.follow(ledgered.stage(2, [QUERY], since=0))
    staging.load(ledgered.target(2), got.update)
    assert got.keys() == {QUERY.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj")}
    assert all(torch.equal(got[name], ledgered.state[2][name]) for name in got)
    staging.follow(Instruction("confirm", MODEL, 2, ledgered.target(2).digest.hex()))


def test_only_what_was_staged_is_loaded_and_once(ledgered: Ledgered) -> None:
    staging = Staging()
    staging.follow(ledgered.stage(1))
    with pytest.raises(WeightsMismatch, match="is staged"):
        staging.load(ledgered.target(2), pytest.fail)
    with pytest.raises(WeightsMismatch, match="nothing is staged"):
        staging.load(ledgered.target(1), pytest.fail)


def test_a_load_that_fails_leaves_no_known_state(ledgered: Ledgered) -> None:
    staging = Staging()
    staging.follow(ledgered.stage(0))
    staging.load(ledgered.target(0), lambda tensors: None)
    staging.follow(ledgered.stage(1))

    def fails(tensors: object) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        staging.load(ledgered.target(1), fails)
    for seq in (0, 1):
        with pytest.raises(WeightsMismatch, match="its own weights"):
            staging.follow(Instruction("confirm", MODEL, seq, ledgered.target(seq).digest.hex()))


def test_bits_that_the_ledger_did_not_record_are_not_staged(
    ledgered: Ledgered, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_tiles = steps._apply_tiles

    def apply_and_spoil(bits: Any, parts: Any) -> None:
        apply_tiles(bits, parts)
        bits[0] ^= 1

    monkeypatch.setattr(steps, "_apply_tiles", apply_and_spoil)
    with pytest.raises(CorruptLedger, match="rebuilds to other bits"):
        Staging().follow(ledgered.stage(1))


def test_what_cannot_be_read_is_not_staged(
    ledgered: Ledgered, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ledgered.stage(1)
    digest = good.digest
    for bad, error in (
        (Instruction("stage", MODEL, 2, digest, ledgered.url), WeightsMismatch),
        (Instruction("stage", "other", 1, digest, ledgered.url), NotFound),
        (Instruction("stage", MODEL, 1, digest), InvalidRequest),
        (Instruction("stage", MODEL, 9, digest, ledgered.url), LedgerError),
        (Instruction("load", MODEL, 1, digest, ledgered.url), InvalidRequest),  # type: ignore[arg-type]
    ):
        staging = Staging()
        with pytest.raises(error):
            staging.follow(bad)
        with pytest.raises(WeightsMismatch, match="nothing is staged"):
            staging.load(ledgered.target(1), pytest.fail)
    monkeypatch.setenv(DATABASE, f"sqlite:///{folder / 'absent' / 'ledger.db'}")
    with pytest.raises(StorageError):
        Staging().follow(good)


IMPORTED = """
import sys
import weightledger.ledger.engines.vllm.staging
from importlib.metadata import packages_distributions
known, loaded = packages_distributions(), {one.partition(".")[0] for one in sys.modules}
print(*{name for one in loaded for name in known.get(one, [])})
"""


def test_what_is_installed_beside_the_server_is_what_its_workers_import() -> None:
    """The plugin is installed without its dependencies, so as not to move the server's pins."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", one)[0] for one in project["dependencies"]}
    imported = {one for one in done.stdout.split() if one in needed}
    brought = {"torch", "numpy", "safetensors", "msgspec"}  # by vLLM
    for page in ("docs/vllm.md", "benchmarks/vllm_environment.sh"):
        (line,) = [one for one in (ROOT / page).read_text().split("\n") if "install blake3" in one]
        named = {re.split(r"[^\w-]", word.strip("'"))[0] for word in line.split()}
        assert imported - brought <= named, page


OLDER = {"init_transfer_engine", "receive_weights", "shutdown", "trainer_send_weights"}
NEWER = {"init_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update",
         "receive_weights", "shutdown"}  # fmt: skip


@pytest.mark.parametrize(("wanted", "form"), [(OLDER, "older"), (NEWER, "weights")])
def test_each_aphrodite_is_given_the_backend_that_it_knows(
    wanted: set[str], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aphrodite needs a GPU to be installed: its base class stands here by what a backend owes."""
    registered: dict[str, tuple[str, str]] = {}

    class Factory:
        _registry = registered

        @staticmethod
        def register_engine(name: str, module: str, class_name: str) -> None:
            assert name not in registered
            registered[name] = module, class_name

    owed = {name: abc.abstractmethod(lambda self: None) for name in wanted}
    base = abc.ABCMeta("WeightTransferEngine", (), owed)
    parts: dict[str, Any] = {
        "aphrodite": {},
        "aphrodite.config": {"set_current_aphrodite_config": None},
        "aphrodite.distributed": {},
        "aphrodite.distributed.weight_transfer": {"WeightTransferEngineFactory": Factory},
        "aphrodite.distributed.weight_transfer.base": {
            "WeightTransferEngine": base,
            "WeightTransferUpdateInfo": object,
        },
    }
    for name, holds in parts.items():
        module = types.ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    ours = f"{Staging.__module__.rpartition('.')[0]}.aphrodite_"
    try:
        plugin: Any = importlib.import_module(f"{ours}plugin")
        plugin.register()
        plugin.register()  # in one process more than once
        ((module_name, class_name),) = registered.values()
        assert module_name == ours + form
        getattr(importlib.import_module(module_name), class_name)()  # nothing is owed
    finally:
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
