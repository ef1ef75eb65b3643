"""A checkpoint made elsewhere: imported as an event, or recorded by a server that starts so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.api.test_command import as_json, inside
from tests.faults import folders, models
from tests.faults.folders import MODEL
from tests.serving import serving
from weightledger import Ledger, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import WeightsMismatch


def finetuned(seed: int = 3) -> dict[str, torch.Tensor]:
    """The model with one layer changed."""
    state = models.factory().state_dict()
    generator = torch.Generator().manual_seed(seed)
    state["2.weight"] = torch.randn(state["2.weight"].shape, generator=generator)
    return {name: tensor.clone() for name, tensor in state.items()}


def wider() -> dict[str, torch.Tensor]:
    """The same with the changed layer in float64: not the model's bits, whatever they round to."""
    state = finetuned()
    return state | {"2.weight": state["2.weight"].double()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with folders.opened(folder) as ledger:
        ledger.model(MODEL, engine=TorchEngine(models.factory()))
    return folder


def checkpoint(folder: Path, state: dict[str, torch.Tensor], *, shards: bool) -> Path:
    """The state as one file, or as a folder of two."""
    if not shards:
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    names = sorted(state)
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: state[name] for name in part}, folder / f"model-{number}.safetensors")
    return folder


@pytest.mark.parametrize("shards", [False, True], ids=["file", "folder"])
def test_a_checkpoint_is_imported_as_one_event(data: Path, tmp_path: Path, shards: bool) -> None:
    made = tmp_path / "checkpoint"
    made.mkdir()
    source = str(checkpoint(made, finetuned(), shards=shards))
    given = ("--data-dir", str(data), "--offline", "-m", "tuned", "--actor", "me")
    result = as_json("import", source, *given)
    assert result["success"] and result["changed"] == 1
    with Ledger.open(folders.url_of(data), upgrade=False) as ledger:
        history = ledger.history(MODEL)
        head = history.head()
        assert head.seq == 1
        note = history.store.annotation(1)
        assert (note.reason, note.actor) == ("tuned", "me")
        state = history.state()
        assert all(torch.equal(state[name], tensor) for name, tensor in finetuned().items())
        assert verify(history).problem is None


def test_what_is_no_checkpoint_of_the_model_changes_nothing(data: Path, tmp_path: Path) -> None:
    given = ("--data-dir", str(data), "--offline")
    (tmp_path / "text.safetensors").write_text("no tensors")
    lacking = finetuned()
    del lacking["0.bias"]
    save_file(lacking, tmp_path / "lacking.safetensors")
    save_file(wider(), tmp_path / "wider.safetensors")
    opening = {"model": MODEL, "events": 1, "format": "weightledger.log.9"}
    (tmp_path / "written-again.jsonl").write_text(json.dumps(opening) + "\n")
    (tmp_path / "twice").mkdir()
    for name in "ab":
        save_file(finetuned(), tmp_path / "twice" / f"{name}.safetensors")
    for source, said in (
        ("text.safetensors", "cannot be read as safetensors"),
        ("lacking.safetensors", "0.bias"),
        ("wider.safetensors", "got float64"),
        ("twice", "two files"),
        ("written-again.jsonl", "newer release"),
        ("nowhere", "no safetensors file"),
    ):
        status, _, error = inside("import", str(tmp_path / source), *given)
        assert status == 1 and said in error, (source, error)
    with Ledger.open(folders.url_of(data), upgrade=False) as ledger:
        assert ledger.history(MODEL).head().seq == 0


def test_a_checkpoint_is_imported_through_the_server(data: Path, tmp_path: Path) -> None:
    save_file(finetuned(), tmp_path / "model.safetensors")
    with serving(data, "--model", MODEL):
        given = ("--data-dir", str(data), "-m", "tuned")
        result = as_json("import", str(tmp_path / "model.safetensors"), *given)
        assert result["success"] and result["changed"] == 1
        again = as_json("import", str(tmp_path / "model.safetensors"), *given)
        assert again == {"success": True, "changed": 0}
        save_file(wider(), tmp_path / "wider.safetensors")
        status, _, error = inside("import", str(tmp_path / "wider.safetensors"), *given)
        assert status == 1 and "got float64" in error, error
        save_file(finetuned() | {"3.weight": torch.ones(2)}, tmp_path / "more.safetensors")
        status, _, error = inside("import", str(tmp_path / "more.safetensors"), *given)
        assert status == 1 and "the ledger's model has no 3.weight" in error, error
        wrapped = {f"module.{name}": tensor for name, tensor in finetuned(4).items()}
        save_file(wrapped, tmp_path / "wrapped.safetensors")
        assert as_json("import", str(tmp_path / "wrapped.safetensors"), *given)["changed"] == 1
        save_file(finetuned() | {"tied": finetuned()["2.weight"]}, tmp_path / "tied.safetensors")
        assert as_json("import", str(tmp_path / "tied.safetensors"), *given)["changed"] == 1
    with Ledger.open(folders.url_of(data), upgrade=False) as ledger:
        history = ledger.history(MODEL)
        assert history.head().counts.applied == 3
        state = history.state()
        assert all(torch.equal(state[name], tensor) for name, tensor in finetuned().items())
        note = history.store.annotation(history.head().seq - 1)
        assert note.reason == "tuned" and '"unwrapped":["module."]' in note.metadata


def test_weights_that_the_ledger_does_not_know_are_recorded_where_that_is_asked_for(
    data: Path,
) -> None:
    module = models.factory()
    module.load_state_dict(finetuned())
    with folders.opened(data) as ledger:
        with pytest.raises(WeightsMismatch, match="--on-mismatch record"):
            ledger.model(MODEL, engine=TorchEngine(module))
        log = ledger.model(MODEL, engine=TorchEngine(module), on_mismatch="record")
        assert log.live.head.seq == 1
        state = log.state()
        assert all(torch.equal(state[name], tensor) for name, tensor in finetuned().items())
        assert log.verify_live()[1].value == log.live.state.value
        log = ledger.model(MODEL, engine=TorchEngine(models.factory()), on_mismatch="record")
        assert log.live.head.seq == 1  # known weights bring nothing
        assert verify(log.history).problem is None
