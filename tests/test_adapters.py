"""Adapters as events: shown, versioned, rolled back, merged and rebuilt with the base."""

import asyncio
import contextlib
import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from tests import warm
from tests.lora import change_config, peft_model, save_adapter
from tests.text_models import llama, tokenizer
from tests.waiting import PATIENCE_S
from weightledger import (
    Caller,
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    LoRAConfig,
    TorchEngine,
)
from weightledger.ledger.adapters import fit
from weightledger.ledger.adapters.folder import WEIGHTS, FolderDescription
from weightledger.ledger.adapters.patterns import Targeting
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    LedgerError,
    ModelNotFound,
    NotFound,
    PreconditionFailed,
)
from weightledger.ledger.writing.commands import LoadAdapter, MergeAdapter, UnloadAdapter

GIVEN = torch.tensor([[0, 30, 94, 87, 12, 200]])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "a": save_adapter(root / "a", 1),
        "b": save_adapter(root / "b", 2),
        "wide": save_adapter(root / "wide", 3, r=8, target_modules=["o_proj"]),
    }


def managed(folder: Path, **options: Any) -> DynamicModelManager:
    engine = options.pop("engine", None) or TransformersEngine(
        options.pop("model", None) or llama(), tokenizer()
    )
    config = DynamicUpdateConfig(backup_dir=folder)
    return DynamicModelManager(engine, "tiny", config=config, **options)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = managed(tmp_path / "data")
    yield made
    made.close()


def load(manager: DynamicModelManager, name: str, path: Path, **options: Any) -> Any:
    return asyncio.run(manager.execute(LoadAdapter(name, path, **options)))


def logits(manager: DynamicModelManager, adapter: str | None = None) -> torch.Tensor:
    with manager.lease(adapter) as live, torch.inference_mode():
        out: torch.Tensor = live.module(GIVEN).logits
        return out


def of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(GIVEN).logits
        return out


def digest(manager: DynamicModelManager) -> bytes:
    with manager.lease() as live:
        return live.digest


def shift_base(manager: DynamicModelManager, by: float = 0.5) -> Any:
    request = IncrementalUpdateRequest("model.layers.0.self_attn.q_proj.weight", by, 1.0)
    return asyncio.run(manager.update(request))


# What an adapter computes


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.1\..*\.(k|o)_proj"},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
        {"layers_to_transform": [1]},
        {"target_modules": ["lm_head", "gate_proj"]},
        {"dtype": torch.bfloat16},
    ],
    ids=lambda fields: "-".join(fields) or "plain",
)
def test_an_adapter_computes_what_peft_computes(
    manager: DynamicModelManager, tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = save_adapter(tmp_path / "adapter", 5, **fields)
    before = logits(manager)
    load(manager, "style", folder)
    assert torch.equal(logits(manager, "style"), of(peft_model(folder)))
    assert not torch.equal(logits(manager, "style"), before)
    assert torch.equal(logits(manager), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_on_a_half_precision_base(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_adapter(tmp_path / "adapter", 5, dtype=dtype)
    manager = managed(tmp_path / "data", model=llama().to(torch.bfloat16))
    load(manager, "style", folder)
    expected = of(peft_model(folder, llama().to(torch.bfloat16)))
    assert torch.equal(logits(manager, "style"), expected)
    manager.close()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_tied_head_may_have_an_adapter_but_not_be_merged(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "adapter", 5, target_modules=["lm_head", "q_proj"])
    manager = managed(tmp_path / "data", model=llama(tie_word_embeddings=True))
    load(manager, "style", folder)
    expected = of(peft_model(folder, llama(tie_word_embeddings=True)))
    assert torch.equal(logits(manager, "style"), expected)
    before = digest(manager)
    with pytest.raises(InvalidRequest, match=r"'lm_head.weight', which is tied"):
        asyncio.run(manager.execute(MergeAdapter("style")))
    assert digest(manager) == before
    manager.close()


def test_the_base_goes_on_being_shared_and_updated(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    load(manager, "a", folders["a"])
    load(manager, "b", folders["b"])
    with manager.lease() as live, manager.lease("a") as through:
        base = dict(live.module.named_parameters())
        adapted = {n.replace(".base_layer", ""): t for n, t in through.module.named_parameters()}
        assert all(adapted[name] is tensor for name, tensor in base.items())
        assert not through.module.training
        assert (live.seq, live.digest) == (through.seq, through.digest)
    flags = {name: t.requires_grad for name, t in base.items()}
    assert flags == {name: t.requires_grad for name, t in llama().named_parameters()}
    shift_base(manager)
    moved = llama()
    with torch.no_grad():
        moved.model.layers[0].self_attn.q_proj.weight.add_(0.5)
    assert torch.equal(logits(manager), of(moved))
    for name in ("a", "b"):
        assert torch.equal(
            logits(manager, name), of(peft_model(folders[name], copy.deepcopy(moved)))
        )


def test_a_candidate_keeps_the_adapters_that_are_live(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    load(manager, "a", folders["a"])
    engine = manager.engine
    assert isinstance(engine, TransformersEngine)
    name = "model.norm.weight"
    for new in ({}, {name: torch.full((48,), 2.0)}):
        candidate = engine.prepare(new)
        moved = llama()
        moved.model.norm.weight.data.copy_(candidate.whole[name])
        with torch.inference_mode():
            shown = candidate.adapted["a"].module(GIVEN).logits
        assert torch.equal(shown, of(peft_model(folders["a"], moved)))
    assert engine.prepare_with({}, {}).adapted == {}


def test_an_encoder_embeds_through_an_adapter(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(vocab_size=384, num_hidden_layers=1, **shape)).eval()
    folder = save_adapter(
        tmp_path / "adapter", 5, base=copy.deepcopy(encoder), target_modules=["query", "dense"]
    )
    expected = peft_model(folder, copy.deepcopy(encoder))
    manager = managed(tmp_path / "data", model=encoder)
    load(manager, "style", folder)
    with manager.lease("style") as live, torch.inference_mode():
        got = live.module(GIVEN).last_hidden_state
        assert torch.equal(got, expected(GIVEN).last_hidden_state)
        assert not torch.equal(got, encoder(GIVEN).last_hidden_state)
    manager.close()


def test_a_merge_that_degrades_the_model_is_refused(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    original = llama().model.layers[0].self_attn.q_proj.weight

    def evaluator(module: Any) -> dict[str, float]:
        query = module.model.layers[0].self_attn.q_proj.weight
        return {"accuracy": 1.0 if torch.equal(query, original) else 0.5}

    manager = managed(tmp_path / "data", evaluator=evaluator)
    load(manager, "style", folders["a"])
    before = digest(manager)
    event = asyncio.run(manager.execute(MergeAdapter("style")))
    assert event.kind == "update_rejected"
    assert "degradation" in manager.update_result(event)["reason"]
    assert (digest(manager), list(manager.log.adapters)) == (before, ["style"])
    manager.close()


@pytest.mark.parametrize(
    ("base", "target", "value"),
    [
        (llama, "q_proj", 1e20),
        (lambda: llama().half(), "q_proj", 1e5),
        (lambda: opt().half(), "embed_tokens", 1e5),
    ],
)
def test_a_merge_that_overflows_is_refused_as_any_update_that_does(
    tmp_path: Path, base: Callable[[], Any], target: str, value: float
) -> None:
    """Whether the product overflows or only what it is added to, nobody sent any update_data."""
    folder = save_adapter(tmp_path / "adapter", 5, base=base(), target_modules=[target])
    tensors(lambda given: [one.fill_(value) for one in given.values()])(folder)
    manager = managed(tmp_path / "data", model=base())
    load(manager, "style", folder)
    event = asyncio.run(manager.execute(MergeAdapter("style")))
    assert (event.kind, event.body["evidence"]) == ("update_rejected", {"cause": "non_finite"})
    assert "NaN or infinite" in event.body["reason"]
    manager.close()


def test_loading_leaves_random_numbers_alone(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    state = torch.random.get_rng_state()
    load(manager, "a", folders["a"])
    assert torch.equal(torch.random.get_rng_state(), state)


# Versions


def test_a_layer_that_another_thread_makes_meanwhile_has_values(
    folders: dict[str, Path], manager: DynamicModelManager
) -> None:
    over, devices = threading.Event(), set()

    def make_layers() -> None:
        while not over.is_set():
            devices.add(torch.nn.Linear(1, 1).weight.device.type)

    thread = threading.Thread(target=make_layers)
    thread.start()
    try:
        for number in range(4):
            load(manager, f"a{number}", folders["a"])
    finally:
        over.set()
        thread.join()
    assert devices == {"cpu"}


def test_load_version_reload_rollback_gives_the_same_bits(
    manager: DynamicModelManager, folders: dict[str, Path], tmp_path: Path
) -> None:
    bare = digest(manager)
    first = load(manager, "style", folders["a"])
    assert (first.kind, first.body["adapter"], first.body["replaced"]) == (
        "adapter_loaded",
        "style",
        False,
    )
    expected, state = logits(manager, "style"), digest(manager)
    version = asyncio.run(manager.create_version("with style a"))
    again = load(manager, "style", folders["wide"], inplace=True)
    assert (again.seq, again.body["replaced"], again.body["rank"]) == (first.seq + 3, True, 8)
    assert torch.equal(logits(manager, "style"), of(peft_model(folders["wide"])))
    shift_base(manager)
    asyncio.run(manager.execute(UnloadAdapter("style")))
    assert manager.log.adapters == {}

    assert asyncio.run(manager.rollback_to_version(version))["success"]
    assert (digest(manager), list(manager.log.adapters)) == (state, ["style"])
    assert torch.equal(logits(manager, "style"), expected)

    asyncio.run(manager.rollback_to_version("seq:0"))
    assert digest(manager) == bare
    with pytest.raises(ModelNotFound), manager.lease("style"):
        pass
    asyncio.run(manager.rollback_to_version("head~1"))
    assert torch.equal(logits(manager, "style"), expected)
    assert verify(manager.log.history).problem is None
    _, hashed = manager.log.verify_live()
    assert hashed.value == state


def test_a_reader_keeps_base_and_adapter_of_its_version(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    load(manager, "style", folders["a"])
    expected = logits(manager, "style")
    with manager.lease("style") as live, torch.inference_mode():
        load(manager, "style", folders["b"], inplace=True)
        shift_base(manager)
        asyncio.run(manager.execute(UnloadAdapter("style")))
        assert torch.equal(live.module(GIVEN).logits, expected)


def test_a_restart_brings_adapters_back(tmp_path: Path, folders: dict[str, Path]) -> None:
    manager = managed(tmp_path / "data")
    kept = Path(shutil.copytree(folders["a"], tmp_path / "kept"))
    load(manager, "style", kept)
    shift_base(manager)
    expected, state = logits(manager, "style"), digest(manager)
    manager.close()
    shutil.rmtree(kept)  # the state alone restores it
    manager = managed(tmp_path / "data")
    assert digest(manager) == state
    assert torch.equal(logits(manager, "style"), expected)
    manager.close()


REBUILD = """
import sys
from weightledger import Ledger
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes, spec_of
from weightledger.ledger.tensors.state import StateDigest

with Ledger.open(sys.argv[1], upgrade=False) as ledger:
    history = ledger.history("tiny")
    for position in ("seq:0", "seq:1", "seq:2", "head"):
        target = history.resolve(position)
        _, tensors = history.rebuild(target.node, target.state)
        specs = [spec_of(name, tensor) for name, tensor in tensors.items()]
        digests = {name: content_digest(lanes(tensor)) for name, tensor in tensors.items()}
        print(StateDigest(specs, digests).value.hex())
"""


def test_another_process_rebuilds_the_states(tmp_path: Path, folders: dict[str, Path]) -> None:
    manager = managed(tmp_path / "data")
    states = [digest(manager)]
    load(manager, "a", folders["a"])
    states.append(digest(manager))
    shift_base(manager)
    states.append(digest(manager))
    load(manager, "a", folders["b"], inplace=True)
    states.append(digest(manager))
    manager.close()
    url = f"sqlite:///{tmp_path / 'data' / 'ledger.db'}"
    done = warm.run(url, program=REBUILD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [state.hex() for state in states]


def test_another_process_is_followed(tmp_path: Path, folders: dict[str, Path]) -> None:
    one, other = managed(tmp_path / "data"), managed(tmp_path / "data")
    load(one, "style", folders["a"])
    asyncio.run(other.catch_up())
    assert torch.equal(logits(other, "style"), logits(one, "style"))
    asyncio.run(other.execute(UnloadAdapter("style")))
    with pytest.raises(InvalidRequest, match="already been loaded"):
        load(other, "a", folders["a"])
        load(one, "a", folders["a"])
    one.close()
    other.close()


def test_what_another_process_did_is_known_before_an_adapter_is_refused(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    limits = LoRAConfig(max_loras=1)
    one, other = (managed(tmp_path / "data", lora_config=limits) for _ in range(2))
    for name in ("style", "b", "style"):
        load(one, name, folders["a"])
        asyncio.run(other.catch_up())
        asyncio.run(one.execute(UnloadAdapter(name)))
        # The other one has not heard of it: for it the only place is taken, the name as well.
        assert load(other, "style", folders["b"]).kind == "adapter_loaded"
        asyncio.run(other.execute(UnloadAdapter("style")))
    one.close()
    other.close()


def test_weights_of_a_base_that_another_process_changed_are_not_the_models_own(
    tmp_path: Path,
) -> None:
    brings = {"target_modules": ["lm_head"], "save_embedding_layers": True}
    before = save_adapter(tmp_path / "before", 5, **brings)
    after = save_adapter(tmp_path / "after", 5, **brings)
    key = "base_model.model.lm_head.base_layer.weight"
    tensors(lambda t: t[key].add_(0.5))(after)
    one, other = managed(tmp_path / "data"), managed(tmp_path / "data")
    asyncio.run(one.update(IncrementalUpdateRequest("lm_head.weight", 0.5, 1.0)))
    with pytest.raises(InvalidRequest, match=r"brings 'lm_head.weight' along, other than"):
        load(other, "style", before)
    asyncio.run(one.rollback_to_version("head~1"))
    asyncio.run(other.catch_up())
    asyncio.run(one.rollback_to_version("seq:1"))
    assert load(other, "style", after).kind == "adapter_loaded"
    one.close()
    other.close()


# Merging


@pytest.mark.parametrize("fields", [{"r": 16}, {"use_rslora": True, "r": 1}])
def test_a_merge_is_one_event_and_rolls_back_exactly(
    manager: DynamicModelManager, tmp_path: Path, fields: dict[str, Any]
) -> None:
    folder = save_adapter(tmp_path / "adapter", 5, **fields)
    load(manager, "style", folder)
    shown, base, state = logits(manager, "style"), logits(manager), digest(manager)
    event = asyncio.run(manager.execute(MergeAdapter("style")))
    assert (event.kind, event.body["operation"]) == ("updated", "merge_adapter")
    assert len(event.body["updates"]) == 6
    assert {change["operation"] for change in event.body["updates"]} == {"additive"}
    assert manager.log.adapters == {}
    assert torch.allclose(logits(manager), shown, atol=1e-4)
    assert not torch.allclose(logits(manager), base, atol=1e-2)
    asyncio.run(manager.rollback_to_version("head~1"))
    assert digest(manager) == state
    assert torch.equal(logits(manager), base)
    assert torch.equal(logits(manager, "style"), shown)


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    """A random GPT-2, whose linear layers are Conv1D: their weights are [inputs, outputs]."""
    shape = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return GPT2LMHeadModel(GPT2Config(vocab_size=384, **shape, **ends, **changes)).eval()


def opt() -> OPTForCausalLM:
    """A random OPT whose head is not tied, so that an adapter of its embedding may be merged."""
    shape = {"hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    own = {"word_embed_proj_dim": 48, "max_position_embeddings": 64, "tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return OPTForCausalLM(OPTConfig(vocab_size=384, **shape, **own)).eval()


MERGED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "linear": (llama, {}),
    "linear_rslora": (llama, {"use_rslora": True, "r": 3}),
    "linear_patterns": (
        llama,
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers.1.self_attn.(q|v)_proj": 3}},
    ),
    "linear_flagged": (llama, {"fan_in_fan_out": True}),
    "half_adapter": (llama, {"dtype": torch.bfloat16}),
    "half_base": (lambda: llama().to(torch.bfloat16), {}),
    "half_both": (lambda: llama().to(torch.float16), {"dtype": torch.float16}),
    "double_base": (lambda: llama().double(), {}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d_square": (gpt2, {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "conv1d_all_linear": (gpt2, {"target_modules": "all-linear", "fan_in_fan_out": True}),
    "conv1d_and_linear": (
        lambda: gpt2(tie_word_embeddings=False),
        {"target_modules": ["attn.c_proj", "lm_head"], "fan_in_fan_out": True},
    ),
    "embedding": (opt, {"target_modules": ["embed_tokens", "q_proj"]}),
    "half_embedding": (
        lambda: opt().to(torch.bfloat16),
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "embedding_of_positions": (gpt2, {"target_modules": ["wpe"], "fan_in_fan_out": True}),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("flag", [None, False, True])
@pytest.mark.parametrize(("base", "fields"), MERGED.values(), ids=MERGED)
def test_an_adapter_is_shown_and_merged_to_the_bits_of_peft(
    tmp_path: Path, base: Callable[[], Any], fields: dict[str, Any], flag: bool | None
) -> None:
    folder = save_adapter(tmp_path / "adapter", 5, base=base(), **fields)
    if flag is not None:
        change_config(folder, fan_in_fan_out=flag)
    manager = managed(tmp_path / "data", model=base())
    load(manager, "style", folder)
    theirs = peft_model(folder, base())
    assert torch.equal(logits(manager, "style"), of(theirs))
    asyncio.run(manager.execute(MergeAdapter("style")))
    merged = theirs.merge_and_unload()
    assert torch.equal(logits(manager), of(merged))
    assert not torch.equal(logits(manager), of(base()))
    expected = merged.state_dict()
    with manager.lease() as live:
        for name, tensor in live.module.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
    manager.close()


def test_weights_of_the_base_in_an_adapter_have_to_be_the_models_own(tmp_path: Path) -> None:
    """PEFT saves the whole weight of a head or an embedding that has an adapter along with it."""
    folder = save_adapter(
        tmp_path / "adapter", 5, target_modules=["lm_head"], save_embedding_layers=True
    )
    key = "base_model.model.lm_head.base_layer.weight"
    assert key in load_file(folder / WEIGHTS)
    manager = managed(tmp_path / "data")
    load(manager, "style", folder)
    assert torch.equal(logits(manager, "style"), of(peft_model(folder)))
    assert not any("base_layer" in name for name in manager.log.adapters["style"].tensors)
    tensors(lambda t: t[key].add_(1))(folder)
    with pytest.raises(InvalidRequest, match=r"brings 'lm_head.weight' along, other than"):
        load(manager, "other", folder)
    manager.close()


def test_a_merge_may_leave_the_adapter_loaded(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    load(manager, "style", folders["a"])
    asyncio.run(manager.execute(MergeAdapter("style", unload=False)))
    assert list(manager.log.adapters) == ["style"]
    with pytest.raises(NotFound, match="'other' cannot be found"):
        asyncio.run(manager.execute(MergeAdapter("other")))


# Every field of PEFT's


def test_every_field_of_pefts_config_is_followed_means_nothing_or_is_refused() -> None:
    """A new field of PEFT's is refused unless it has the value that means nothing."""
    plain = LoraConfig(target_modules=["q_proj"])
    known = fit._FOLLOWED | fit._WITHOUT_EFFECT
    for field in dataclasses.fields(LoraConfig):
        if field.name not in known:
            assert getattr(plain, field.name) in fit._NEUTRAL, field.name
    assert not known - {field.name for field in dataclasses.fields(LoraConfig)}


# What is refused, and changes nothing


def other_format(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def broken_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"not safetensors")


def without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[")


def listed_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def deep_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"r": ' + "[" * 3000 + "]" * 3000 + "}")


def ambiguous_config(folder: Path) -> None:
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text('{"r": 2,' + text.lstrip().removeprefix("{"))


def ambiguous_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)[FIRST])
    twice = header[:-1] + f',"{FIRST}":{entry}}}'.encode()
    (folder / WEIGHTS).write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + length :])


def header_too_long(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


def more_bytes(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0" * 100)


def fewer_bytes(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 4)


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **fields)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled": (other_format, r"adapter_model.bin is not read: pickled files run code"),
    "no_weights": (without_weights, "has no adapter_model.safetensors"),
    "broken_weights": (broken_weights, "cannot be read"),
    "no_config": (without_config, "has no adapter_config.json"),
    "broken_config": (broken_config, "cannot be read"),
    "config_is_a_list": (listed_config, "not a JSON object"),
    "other_kind": (config(peft_type="IA3"), "peft_type 'IA3'; expected LORA"),
    "wrong_rank": (config(r=5), "the config says rank 5"),
    "no_rank": (config(r=None), "rank None"),
    "rank_is_true": (config(r=True), "rank True"),
    "odd_alpha": (config(lora_alpha="8"), "alpha '8'"),
    "odd_pattern": (config(rank_pattern={"(": 4}), "rank_pattern that cannot be read"),
    "flag_inside": (config(alpha_pattern={"(?i)q_proj": 4}), "alpha_pattern that cannot be read"),
    "nested_pattern": (config(target_modules="(" * 990 + ")" * 990), "cannot be"),
    "long_pattern": (config(target_modules="q" * 2001), "at most 2000 characters"),
    "many_patterns": (
        config(rank_pattern=dict.fromkeys(map(str, range(1025)), 4)),
        "1025 patterns",
    ),
    "look_ahead": (config(target_modules="(?!x).*q_proj"), "cannot be matched in linear time"),
    "back_reference": (config(exclude_modules=r"(a)\1"), "cannot be matched in linear time"),
    "read_differently": (config(target_modules="q{,3}"), "not read alike"),
    "pattern_list": (config(rank_pattern=[1]), "not a JSON object"),
    "names_of_numbers": (config(target_modules=[1]), "expected a text or a list of texts"),
    "layers_as_text": (config(layers_to_transform="1"), "expected a whole number"),
    "other_layers": (config(layers_to_transform=[0]), "name other modules"),
    "excluded": (config(exclude_modules=["q_proj"]), "name other modules"),
    "nested_config": (config(loftq_config=json.loads("[" * 17 + "]" * 17)), "nested more than"),
    "deep_config": (deep_config, "nested too deeply"),
    "large_config": (config(base_model_name_or_path="x" * (1 << 20)), "of more than 1048576"),
    "tied": (config(ensure_weight_tying=True), "ensure_weight_tying=True"),
    "lora_bias": (config(lora_bias=True), "lora_bias=True"),
    "parameters": (config(target_parameters=["x"]), "target_parameters"),
    "dora": (config(use_dora=True), "use_dora=True"),
    "bias": (config(bias="all"), "bias='all'"),
    "modules_to_save": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "pissa": (config(init_lora_weights="pissa"), "another base"),
    "unknown_field": (config(brand_new="x"), "brand_new='x'"),
    "fewer_targets": (config(target_modules=["q_proj"]), "name other modules"),
    "no_such_target": (config(target_modules=["nothing"]), "name other modules"),
    "no_such_module": (
        tensors(lambda t: t.update({k.replace("layers.0", "layers.9"): t.pop(k) for k in [*t]})),
        "module 'model.layers.9",
    ),
    "half": (tensors(lambda t: t.pop(FIRST)), "without its other half"),
    "other_shape": (tensors(lambda t: t.update({FIRST: torch.ones(4, 7)})), r"\[4, 7\]"),
    "not_finite": (tensors(lambda t: t[FIRST].fill_(float("nan"))), "not finite"),
    "integers": (tensors(lambda t: t.update({FIRST: t[FIRST].int()})), "as 'I32'; expected"),
    "convolution": (
        tensors(lambda t: t.update({FIRST: t[FIRST][..., None, None].contiguous()})),
        r"\[4, 48, 1, 1\]",
    ),
    "ambiguous_config": (ambiguous_config, "'r' stands more than once"),
    "ambiguous_weights": (ambiguous_weights, f"'{FIRST}' stands more than once"),
    "header_too_long": (header_too_long, "a header of"),
    "more_bytes": (more_bytes, "where its tensors take"),
    "fewer_bytes": (fewer_bytes, "where its tensors take"),
    "embedding": (
        tensors(lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(1)})),
        "without its other half",
    ),
    "base_weight": (
        tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(384, 48)})),
        "linear layers",
    ),
    "empty": (tensors(dict.clear), "has no tensors"),
}


@pytest.mark.parametrize(("break_it", "says"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_by_what_is_wrong(
    manager: DynamicModelManager,
    folders: dict[str, Path],
    tmp_path: Path,
    break_it: Callable[[Path], None],
    says: str,
) -> None:
    load(manager, "kept", folders["a"])
    before, expected = manager.log.live.head, logits(manager, "kept")
    folder = Path(shutil.copytree(folders["a"], tmp_path / "folder"))
    break_it(folder)
    for name, inplace in (("new", False), ("kept", True)):
        with pytest.raises(InvalidRequest, match=says):
            load(manager, name, folder, inplace=inplace)
    assert manager.log.history.head().hash == before.hash
    assert torch.equal(logits(manager, "kept"), expected)


CATASTROPHIC = {
    "rank_pattern": {r"((\w|\.)+)+!": 4},
    "alpha_pattern": {r"(.*)*(.*)*(.*)*x": 4},
    "target_modules": r"((\w|\.)+)+!",
    "exclude_modules": r"((\w|\.)*)*!",
    "layers_pattern": [r"((\w|\.)+)+!"],
}


@pytest.mark.parametrize("field", CATASTROPHIC)
def test_expressions_that_would_backtrack_for_ever_are_matched_at_once(
    manager: DynamicModelManager, folders: dict[str, Path], tmp_path: Path, field: str
) -> None:
    folder = Path(shutil.copytree(folders["a"], tmp_path / "folder"))
    change_config(folder, layers_to_transform=[0, 1], **{field: CATASTROPHIC[field]})
    with contextlib.suppress(InvalidRequest):
        load(manager, "style", folder)


NAMES = [name for name, _ in llama().named_modules()]

EXPRESSIONS = [
    "q_proj",
    r".*\.(q|v)_proj",
    r"model\.layers\.[01]\..*?_proj",
    r"(?i)MODEL\.LAYERS\.1\.MLP\..*",
    r"(?:.*?layers\.\d{1,2}.*?(?:self_attn|mlp)\.(?:q_proj|down_proj))|lm_head",
    r"\b.*norm\b",
    ".",
    ["q_proj", "layers.1.mlp.down_proj", "lm_head", "x"],
    ["model.layers.0.self_attn.q_proj"],
    ["proj"],
]


@pytest.mark.parametrize("layers", [None, 1, [0, 5], []], ids=str)
@pytest.mark.parametrize("between", [None, "layers", ["x", "l.yers"], []], ids=str)
@pytest.mark.parametrize("excluded", [None, "lm_head", r".*1.*", ["q_proj"]], ids=str)
def test_modules_are_picked_as_peft_picks_them(layers: Any, between: Any, excluded: Any) -> None:
    for expression in EXPRESSIONS:
        chosen = {
            "target_modules": expression,
            "exclude_modules": excluded,
            "layers_to_transform": layers if isinstance(expression, list) else None,
            "layers_pattern": between if layers and isinstance(expression, list) else None,
        }
        ours = Targeting.of({"r": 4, "lora_alpha": 8, **chosen})
        theirs = LoraConfig(**chosen)
        picked = {name for name in NAMES if check_target_module_exists(theirs, name)}
        assert {name for name in NAMES if ours.picks(name)} == picked, chosen


# Nothing repeated is repeated again: PEFT's own matching has to come to an end.
PIECES = ["q", "v", "_proj", ".", r"\.", r"\d", "[01]", "(q|v)", "s?", "[a-z]+", ".*", ".*?"]
PIECES += ["^", "$", "|", "x{1,2}", "(", ")", "{,2}", "[[:alpha:]]", r"\w", r"\b", "(?i)", "é"]


@given(
    patterns=st.lists(
        st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
@settings(max_examples=300, deadline=None)
def test_a_pattern_means_what_it_means_to_peft_or_is_refused(patterns: list[str]) -> None:
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config["rank_pattern"] = {pattern: n for n, pattern in enumerate(patterns, 10)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = Targeting.of(config)
        except InvalidRequest:
            return
        for name in NAMES:
            key = get_pattern_key(config["rank_pattern"], name)
            assert ours.rank_of(name) == config["rank_pattern"].get(key, 4), patterns


def test_a_file_that_does_not_fit_is_refused_without_being_read(
    manager: DynamicModelManager, folders: dict[str, Path], tmp_path: Path
) -> None:
    """A sparse file of 64 GiB: reading it would end the test."""
    folder = Path(shutil.copytree(folders["a"], tmp_path / "folder"))
    size = 1 << 36
    entry = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    for key in ("useless", FIRST):
        header = json.dumps({key: entry}).encode()
        with (folder / WEIGHTS).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
        with pytest.raises(InvalidRequest, match=r"expected base_model|without its other half"):
            load(manager, "style", folder)


def test_a_folder_is_read_while_others_write(
    manager: DynamicModelManager, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading an adapter waits for a write of another thread to be done: no lock is held."""
    read = FolderDescription.read
    update = IncrementalUpdateRequest("model.layers.0.self_attn.q_proj.weight", 0.5, 1.0)

    def after_a_write(self: FolderDescription, name: str) -> Any:
        writer = threading.Thread(target=manager.log.apply, args=(update,), daemon=True)
        writer.start()
        writer.join(PATIENCE_S)
        return read(self, name)

    monkeypatch.setattr(FolderDescription, "read", after_a_write)
    event = load(manager, "style", folders["a"])
    assert (event.seq, event.kind) == (2, "adapter_loaded")


def test_a_retry_needs_the_folder_no_more(
    manager: DynamicModelManager, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["a"], tmp_path / "folder"))
    once = Caller(idempotency_key="once")
    first = load(manager, "style", folder, caller=once)
    shutil.rmtree(folder)
    assert load(manager, "style", folder, caller=once).seq == first.seq


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "a\x7f", "..", "tiny", "x" * 201, 5])
def test_names_that_no_adapter_may_have(
    manager: DynamicModelManager, folders: dict[str, Path], name: Any
) -> None:
    with pytest.raises(InvalidRequest, match="lora_name"):
        load(manager, name, folders["a"])
    assert manager.log.live.head.seq == 0


def test_names_that_an_adapter_may_have(
    manager: DynamicModelManager, folders: dict[str, Path]
) -> None:
    for name in ("v1.2", "Größe 東京", "config"):
        load(manager, name, folders["a"])
        assert torch.equal(logits(manager, name), of(peft_model(folders["a"])))
    assert list(manager.log.adapters) == ["Größe 東京", "config", "v1.2"]


def test_limits(tmp_path: Path, folders: dict[str, Path]) -> None:
    manager = managed(tmp_path / "data", lora_config=LoRAConfig(max_loras=1, max_lora_rank=4))
    with pytest.raises(InvalidRequest, match="LoRA rank 8 is greater than max_lora_rank 4"):
        load(manager, "wide", folders["wide"])
    load(manager, "a", folders["a"])
    with pytest.raises(InvalidRequest, match="max_loras is 1: unload one of a"):
        load(manager, "b", folders["b"])
    load(manager, "a", folders["b"], inplace=True)
    manager.close()


def test_engines_without_adapters_refuse_before_anything_is_recorded(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    for number, engine in enumerate([llama(), TorchEngine(llama())]):
        manager = managed(tmp_path / str(number), engine=engine)
        with pytest.raises(InvalidRequest, match="shows no adapters"):
            load(manager, "a", folders["a"])
        assert manager.log.live.head.seq == 0
        manager.close()


def test_an_engine_without_adapters_serves_the_base_of_a_state_with_some(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    manager = managed(tmp_path / "data")
    load(manager, "style", folders["a"])
    state = digest(manager)
    manager.close()
    plain = managed(tmp_path / "data", engine=TorchEngine(llama()))
    assert digest(plain) == state
    with pytest.raises(ModelNotFound, match="'style' does not exist"), plain.lease("style"):
        pass
    shift_base(plain)
    assert list(plain.log.adapters) == ["style"]
    plain.close()


def test_retries_and_conditions(manager: DynamicModelManager, folders: dict[str, Path]) -> None:
    key = Caller(idempotency_key="once", expected_seq=0)
    first = load(manager, "style", folders["a"], caller=key)
    assert load(manager, "style", folders["a"], caller=key).seq == first.seq
    with pytest.raises(IdempotencyMismatch):
        load(manager, "style", folders["b"], caller=key)
    with pytest.raises(PreconditionFailed):
        asyncio.run(manager.execute(UnloadAdapter("style", caller=Caller(expected_seq=0))))
    with pytest.raises(NotFound, match="No adapter found for"):
        load(manager, "other", Path("no/such/folder"))
    with pytest.raises(LedgerError, match="'other' cannot be found"):
        asyncio.run(manager.execute(UnloadAdapter("other")))


def test_a_log_shows_what_happened(
    manager: DynamicModelManager, folders: dict[str, Path], tmp_path: Path
) -> None:
    load(manager, "style", folders["a"])
    asyncio.run(manager.execute(UnloadAdapter("style")))
    url = f"sqlite:///{tmp_path / 'data' / 'ledger.db'}"
    with Ledger.open(url, upgrade=False) as ledger:
        state = ledger.history("tiny").state("seq:1")
    config = json.loads(state["adapter/style/config"].numpy().tobytes())
    assert config["r"] == 4
    assert torch.equal(state[f"adapter/style/{FIRST}"], load_file(folders["a"] / WEIGHTS)[FIRST])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "weightledger",
            "log",
            "--data-dir",
            str(tmp_path / "data"),
            "--csv",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "adapter_unloaded,unload_adapter style" in done.stdout
    assert "adapter_loaded,load_adapter style" in done.stdout
