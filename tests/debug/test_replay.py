"""States of the past in this process and in folders that other libraries read."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.api.test_command import as_json
from tests.lora import peft_model, save_adapter
from tests.text_models import llama, save_llama
from weightledger import IncrementalUpdateRequest, InvalidRequest, Ledger, NotFound, TorchEngine
from weightledger.ledger.bundles.folder import SIGNATURE
from weightledger.ledger.bundles.signing import sign
from weightledger.ledger.bundles.statement import key_from_seed, read
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.history.ways import Ways
from weightledger.ledger.writing.commands import LoadAdapter


class Tied(nn.Module):
    """Two names of one tensor, a buffer, and odd dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("scratch", torch.full((2,), 7.0), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(rows)) + self.mean.float()


def test_a_module_of_this_process_gets_the_state_of_any_position(tmp_path: Path) -> None:
    served = Tied()
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", engine=TorchEngine(served))
        rows = torch.rand(3, 4)
        answers = []
        for value in (0.5, 0.25):
            log.apply(IncrementalUpdateRequest("mean", [value], 1.0, indices=[1]))
            with log.projector.engine.lease() as live, torch.inference_mode():
                answers.append(live.module(rows))
        log.apply(IncrementalUpdateRequest("mean", [1.0], 1.0, indices=[1]))
        module = Tied()
        module.scratch += 1
        before = log.live
        for position, answer in zip(("update_1", "update_2"), answers, strict=True):
            state = log.replay_into(module, position)
            assert state.digest.value == log.history.resolve(position).state
            with torch.inference_mode():
                assert torch.equal(module(rows), answer)
            assert module.last.weight is module.first.weight
            assert module.scratch.tolist() == [8.0, 8.0]  # is no part of the state
        wrapped = nn.DataParallel(Tied())
        log.replay_into(wrapped, "update_2")
        assert torch.equal(wrapped.module.mean, module.mean)
        assert log.live is before
        assert log.verify().ok

        def refused(other: nn.Module, error: type[Exception], words: str) -> None:
            kept = copy.deepcopy(other.state_dict())
            with pytest.raises(error, match=words):
                log.replay_into(other, "update_1")
            assert all(torch.equal(kept[n], t) for n, t in other.state_dict().items())

        refused(nn.Linear(4, 4), NotFound, "lacks first.weight, mean")
        refused(Tied().half(), InvalidRequest, "got float16")
        refused(served, InvalidRequest, "this module is the live one")
        with pytest.raises(NotFound):
            log.replay_into(module, "update_99")


def test_a_state_has_the_name_that_it_got_after_a_rollback_led_to_it(tmp_path: Path) -> None:
    """The version was named at the rollback, and what it names is the state."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        for value in (1.0, 2.0):
            log.apply(IncrementalUpdateRequest("w", value, 1.0))
        log.create_version("the second")
        log.rollback("update_1")
        first = log.create_version("the first, again")
        assert [log.replayed(f"seq:{seq}").version for seq in (1, first.seq)] == [first.name] * 2
        key = key_from_seed(b"k" * 32)
        sign(log.history, "update_1", tmp_path / "signed", key)
        statement = read((tmp_path / "signed" / SIGNATURE).read_text("utf-8"), key)
        assert statement.facts["version"] == first.name
        asked = []
        log.bisect("seq:0", "update_2", lambda state: asked.append(state.version) or state.seq < 2)
        assert first.name in asked


def test_an_exported_folders_adapters_are_read_by_pefts_own_loader(tmp_path: Path) -> None:
    """Base and adapters are those of the position, and compute what the ledger's engine does."""
    from transformers import AutoModelForCausalLM

    served = save_llama(tmp_path / "served")
    data = tmp_path / "data"
    data.mkdir()
    ids = torch.tensor([[3, 5, 7, 11]])
    with Ledger.open(f"sqlite:///{data}/ledger.db") as ledger:
        log = ledger.model("llama", engine=TransformersEngine.load(served))
        for seed, name in ((1, "style"), (2, "tone.v2")):
            folder = save_adapter(tmp_path / f"from-{seed}", seed, base=llama())
            log.execute(LoadAdapter(name, folder))
        name = next(name for name in log.specs if name.endswith("q_proj.weight"))
        log.apply(IncrementalUpdateRequest(name, 0.5, learning_rate=0.1))
        engine = log.projector.engine
        with engine.lease() as live, torch.inference_mode():
            expected = {
                name: adapted.leased()(input_ids=ids).logits
                for name, adapted in live.adapted.items()
            }
        log.apply(IncrementalUpdateRequest(name, 0.5, learning_rate=0.1))
    out = tmp_path / "exported"
    told = as_json(
        *("replay", "--to", "update_1", "--hugging-face", str(served), "-o", str(out)),
        *("--data-dir", str(data)),
    )
    assert told["digest"]
    assert sorted(path.name for path in (out / "adapters").iterdir()) == ["style", "tone.v2"]
    for name, logits in expected.items():
        folder = out / "adapters" / name
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
        base = AutoModelForCausalLM.from_pretrained(out)
        with torch.inference_mode():
            assert torch.equal(peft_model(folder, base)(input_ids=ids).logits, logits)


def test_a_step_does_not_look_at_the_whole_way_to_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a long log that would cost more than the step, whichever way it goes."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(100_000)})
        for value in range(6):
            log.apply(IncrementalUpdateRequest("w", [1.0], 1.0, indices=[value]))
        nodes = [event.node for event in log.history.events(limit=6)]
        walker = Walker(log.history)
        walker.to(nodes[2])
        with monkeypatch.context() as patch:
            patch.delattr(Ways, "anchor_above")
            for node in (nodes[3], nodes[0], nodes[5]):
                state = walker.to(node)
                assert state.digest.value == log.history.require(node).state_after
        log.rollback("seq:0")
        assert not walker.to(0).tensors["weights/w"].any()
