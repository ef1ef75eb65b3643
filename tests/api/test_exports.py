"""A log in other people's forms: Parquet for analysis, a CycloneDX ML-BOM for taking stock."""

import json
import sys
from pathlib import Path

import pytest
import torch
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from pyarrow import parquet

from tests.api.test_command import inside
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.tree import EventTree
from weightledger.ledger.events import leaf_hash, merkle
from weightledger.ledger.writing.caller import Caller

MODEL = 'a "model"/模型'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(4)})
        log.create_initial_version()
        for number in range(5):
            said = {"actor": "ana", "reason": 'a "reason" 🙂\u2028\t', "metadata": {"n": number}}
            log.apply(IncrementalUpdateRequest("w", float(number), 0.5, **said))
        log.apply(IncrementalUpdateRequest("w", 3.4e38, 1.0, "multiplicative"))
        log.create_version("second", performance_metrics={"accuracy": 0.75})
        log.rollback("seq:3", caller=Caller(actor="bo"))
    return folder


def exported(folder: Path, out: Path, *options: str) -> None:
    status, _, err = inside("export", "--data-dir", str(folder), "-o", str(out), *options)
    assert status == 0, err


def test_the_bill_of_materials_is_valid_and_tells_the_history(folder: Path, tmp_path: Path) -> None:
    exported(folder, tmp_path / "bom.json", "--form", "cyclonedx")
    text = (tmp_path / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    exported(folder, tmp_path / "again.json", "--form", "cyclonedx")
    assert (tmp_path / "again.json").read_text() == text
    model = json.loads(text)["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", MODEL)
    commits = model["pedigree"]["commits"]
    assert [one["message"].partition(" ")[0] for one in commits] == [
        "registered",
        *["updated"] * 5,
        "update_rejected",
        "rolled_back",
    ]
    assert commits[1]["author"]["name"] == "ana"
    assert 'a "reason" 🙂' in commits[1]["message"]
    assert {one["description"] for one in model["pedigree"]["ancestors"]} == {
        "Initial version",
        "second",
    }
    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        digest = ledger.history(MODEL).head().state_after.hex()
    assert {"name": "weightledger:state_digest", "value": digest} in model["properties"]


def test_what_was_measured_of_the_live_state_is_on_the_model_card(tmp_path: Path) -> None:
    from weightledger import DynamicModelManager, DynamicUpdateConfig

    manager = DynamicModelManager(
        torch.nn.Linear(2, 2),
        "measured",
        config=DynamicUpdateConfig(backup_dir=tmp_path),
        evaluator=lambda module: {"accuracy": 0.75},
    )
    manager.log.apply(IncrementalUpdateRequest("bias", 0.5, 0.5))
    manager.close()
    exported(tmp_path, tmp_path / "bom.json", "--form", "cyclonedx")
    text = (tmp_path / "bom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    card = json.loads(text)["metadata"]["component"]["modelCard"]
    assert {"type": "accuracy", "value": "0.75"} in card["quantitativeAnalysis"][
        "performanceMetrics"
    ]


def test_a_parquet_file_has_what_every_hash_is_made_of(folder: Path, tmp_path: Path) -> None:
    exported(folder, tmp_path / "log.parquet", "--form", "parquet")
    table = parquet.read_table(tmp_path / "log.parquet")
    rows = table.to_pylist()
    assert [row["seq"] for row in rows] == list(range(len(rows)))
    hashes = [leaf_hash(row["header"]) for row in rows]
    assert [row["event_hash"] for row in rows] == hashes

    def perfect(level: int, number: int) -> bytes:
        return merkle.fold(hashes[number << level : (number + 1) << level])

    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        store = ledger.store.model(MODEL)
        assert merkle.root(len(rows), perfect) == EventTree(store).root(len(rows))
        events = list(store.scan())
    assert [row["id"] for row in rows] == [event.name for event in events]
    assert rows[2]["actor"] == "ana"
    assert json.loads(rows[2]["metadata"]) == {"n": 0}
    assert rows[2]["recorded_at"].timestamp() == pytest.approx(events[2].timestamp)
    assert table.schema.metadata[b"weightledger.model"].decode() == MODEL


def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: str) -> str:
        out = tmp_path / "out"
        status, _, err = inside("export", "--data-dir", str(folder), "-o", str(out), *options)
        assert status == 1
        assert not list(tmp_path.iterdir())
        return err

    assert "lines of JSON only" in refused("--form", "parquet", "--payloads")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "weightledger[parquet]" in refused("--form", "parquet")
