"""What Python callers hand over in the wrong kind is refused by name, before anything is made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import DynamicModelManager, DynamicUpdateConfig, IncrementalUpdateRequest, Ledger
from weightledger.ledger.errors import InvalidRequest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("enable_versioning", "no"),  # which switched it on
        ("two_person_rule", 1),
        ("max_versions", "3"),
        ("max_versions", True),
        ("max_versions", 1.5),
        ("checkpoint_interval", None),
        ("auto_rollback_threshold", "0.1"),
        ("auto_rollback_threshold", True),
        ("auto_rollback_metrics", "accuracy"),  # not a list of its letters
        ("drift_metrics", [3]),
        ("backup_dir", None),
        ("database_url", Path("x.db")),
        ("policy", None),
        ("prepare_percent", 12.5),
    ],
)
def test_a_setting_of_another_kind_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} must be") as caught:
        DynamicUpdateConfig(**{field: value})
    assert caught.value.param == field


def test_numbers_of_numpy_and_any_list_are_taken() -> None:
    np = pytest.importorskip("numpy")
    DynamicUpdateConfig(max_versions=np.int64(3), auto_rollback_threshold=np.float32(0.5))
    DynamicUpdateConfig(auto_rollback_threshold=0, auto_rollback_metrics=["latency_ms"])


def test_what_is_no_engine_no_name_or_no_url_is_refused(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data")
    for engine in (None, "gpt2", {"w": torch.zeros(2)}, torch.nn.Linear):
        with pytest.raises(InvalidRequest, match="engine_client must be"):
            DynamicModelManager(engine, "m", config=config)  # type: ignore[arg-type]
    for name in (None, 3, {"model": "m"}):
        with pytest.raises(InvalidRequest, match="model_config must be"):
            DynamicModelManager(torch.nn.Linear(2, 2), name, config=config)  # type: ignore[arg-type]
    for url in (None, tmp_path):
        with pytest.raises(InvalidRequest, match="given as a URL"):
            Ledger.open(url)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/x.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(2)})
        fine = IncrementalUpdateRequest("w", 1.0)
        for wrong in ({"parameter_name": "w", "update_data": 1.0}, None):
            with pytest.raises(InvalidRequest, match="IncrementalUpdateRequest is expected"):
                log.apply(wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidRequest, match="IncrementalUpdateRequest is expected"):
                log.apply_batch([fine, wrong])  # type: ignore[list-item]
        assert log.live.head.seq == 0
