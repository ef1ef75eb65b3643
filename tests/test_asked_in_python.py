"""What programs ask a log for: numbers of any size are found, and the wrong kind is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit.exports import whole_lines
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.transfer import import_log


def test_a_difference_of_any_size_is_verified_exported_and_imported(tmp_path: Path) -> None:
    """Its norm is a whole number which readers of JSON take for an integer."""
    with Ledger.open(f"sqlite:///{tmp_path}/a.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(6)})
        for value in (2.0**53, 1e17, 1e20, 1e21, 3e38):
            log.apply(IncrementalUpdateRequest("w", value, update_type="replace"))
        assert log.verify().problem is None
        assert [event.seq for event in log.events(min_norm=1e21)] == [5, 4]
        file = tmp_path / "log.jsonl"
        file.write_text("".join(whole_lines(log.history)))
        hashes = [event.hash for event in log.events()]
    with Ledger.open(f"sqlite:///{tmp_path}/b.db") as ledger:
        import_log(ledger.store, file)
        assert [event.hash for event in ledger.model("m").events()] == hashes


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('searched')}/a.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(2)})
        for value in (5.0, 1e17, 1e20, 1e21, True, None, "5.0", "1e3x", -0.0):
            metadata = {"x": value}
            log.apply(IncrementalUpdateRequest("w", 1.0, metadata=metadata, actor="ana"))
        yield log


@pytest.mark.parametrize(
    ("asked", "seqs"),
    [
        (5, [1]),
        (5.0, [1]),
        ("5", [1]),
        ("5.0", [7, 1]),
        (1e17, [2]),
        ("100000000000000000", [2]),
        (1e20, [3]),
        ("100000000000000000000", [3]),  # as `show` writes it
        ("1e20", [3]),
        ("1e+21", [4]),
        (1e21, [4]),
        (True, [5]),
        (None, [6]),
        ("1e3x", [8]),
        (0, [9]),
    ],
)
def test_a_number_is_found_however_it_is_written(
    searched: Any, asked: Any, seqs: list[int]
) -> None:
    assert [event.seq for event in searched.events(metadata={"x": asked})] == seqs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kinds", "updated"),  # not a list of its letters, which no event has
        ("kinds", ["update"]),
        ("actors", "ana"),
        ("actors", [3]),
        ("since", "2026-11-22T10:00:00Z"),
        ("min_seq", 1.5),
        ("max_seq", True),
        ("text", 5),
        ("parameter", ["w"]),
        ("min_norm", "1"),
        ("metadata", {"x": [1]}),
        ("metadata", {"x": float("nan")}),
        ("metadata", {3: "x"}),
        ("metadata", "x=1"),
        ("limit", "5"),
        ("limit", 1.5),
    ],
)
def test_a_filter_of_another_kind_is_refused_by_name(searched: Any, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        searched.events(**{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(("field", "value"), [("metrics", "latency_ms"), ("by", "x")])
def test_a_question_about_metrics_is_refused_by_name(searched: Any, field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        searched.metrics(**{field: value})
    assert caught.value.param == field


def test_an_element_is_blamed_by_a_number_as_well(searched: Any) -> None:
    assert searched.blame("w", 1).touches == searched.blame("w", "1").touches
    for index in (-1, 1.0, True):
        with pytest.raises(InvalidRequest, match="index must be numbers"):
            searched.blame("w", index)


def test_a_bound_of_any_size_is_one(searched: Any) -> None:
    """What a database has no number for was an OverflowError, for `log -n` too."""
    assert len(searched.events(limit=2**70)) == 10
    assert len(searched.events(limit=2**70, text="ana")) == 9
    bounds = {"min_seq": -(2**70), "max_seq": 2**70, "since_us": -(2**70), "until_us": 2**70}
    assert searched.metrics(**bounds) == []
