"""An exported log imported into the other kind of database: the same events, seq by seq."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import new_database
from weightledger import IncrementalUpdateRequest, InvalidRequest, Ledger
from weightledger.ledger.audit import exports
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import NotFound
from weightledger.ledger.transfer import Imported, import_log
from weightledger.ledger.writing.caller import Caller
from weightledger.ledger.writing.commands import Pin

MODEL = 'a "model"/模型'


def fill(url: str) -> None:
    """An event of each kind, payloads in rows and in blobs, snapshots, texts."""
    torch.manual_seed(0)
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, base={"w": torch.zeros(8), "big": torch.randn(400, 400)})
        log.create_initial_version()
        for number in range(60):
            log.apply(
                IncrementalUpdateRequest(
                    "w", float(number), 0.5, actor="ana", reason='a "reason" 🙂', metadata={"n": 1}
                )
            )
        log.apply(IncrementalUpdateRequest("big", torch.randn(400, 400), 1.0, "replace"))
        version = log.create_version("second")
        log.execute(Pin(version.name))
        log.rollback("seq:20", caller=Caller(actor="bo"))
        log.snapshot()
        log.apply(IncrementalUpdateRequest("w", 1.0, 0.5, idempotency_key="k"))
        log.apply(IncrementalUpdateRequest("w", 3.4e38, 1.0, "multiplicative"))
        log.redact("seq:9", texts=["metadata"], caller=Caller(actor="bo", reason="asked for"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    url = f"sqlite:///{tmp_path_factory.mktemp('from')}/ledger.db"
    fill(url)
    with Ledger.open(url) as ledger:
        return list(exports.whole_lines(ledger.history(MODEL)))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: Any, tmp_path: Path) -> Iterator[str]:
    with new_database(request, request.param, tmp_path) as url:
        yield url


def written(folder: Path, lines: list[str]) -> Path:
    file = folder / "log.jsonl"
    file.write_text("".join(lines), "utf-8")
    return file


def test_a_log_is_the_same_in_the_other_database(
    empty: str, lines: list[str], tmp_path: Path
) -> None:
    with Ledger.open(empty) as ledger:
        imported = import_log(ledger.store, written(tmp_path, lines))
        assert imported == Imported(MODEL, len(lines) - 1, len(lines) - 1)
        history = ledger.history(MODEL)
        assert list(exports.whole_lines(history)) == lines
        report = verify(history)
        assert report.ok, report.problem
        assert (report.events, report.snapshots) == (len(lines) - 1, 2)
        # Sent again it changes nothing, and the log goes on from where it is.
        assert import_log(ledger.store, tmp_path / "log.jsonl").written == 0
        log = ledger.model(MODEL)
        again = log.apply(IncrementalUpdateRequest("w", 1.0, 0.5, idempotency_key="k"))
        assert again.seq < len(lines) - 2
        assert log.apply(IncrementalUpdateRequest("w", 1.0, 0.5)).seq == len(lines) - 1
        assert verify(ledger.history(MODEL)).ok


def test_an_import_that_was_interrupted_goes_on(lines: list[str], tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        file = written(tmp_path, lines)
        append = ledger.store.register
        store = None

        class Stopped(Exception):
            pass

        def registered(first: Any) -> Any:
            nonlocal store
            store = append(first)
            raise Stopped

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(ledger.store, "register", registered)
            import_log(ledger.store, file)
        assert import_log(ledger.store, file).written == len(lines) - 2
        assert verify(ledger.history(MODEL)).ok


def edited(number: int, **fields: Any) -> Callable[[list[str]], list[str]]:
    def edit(lines: list[str]) -> list[str]:
        item = {**json.loads(lines[number]), **fields}
        return [*lines[:number], json.dumps(item, ensure_ascii=False) + "\n", *lines[number + 1 :]]

    return edit


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda lines: lines[:-3], "it was cut"),
        (lambda lines: [*lines[:-1], lines[-1][:100]], "it was cut"),
        (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], "event 4 is missing"),
        (lambda lines: [*lines[:5], *lines[6:]], "event 4 is missing"),
        (lambda lines: [*lines[:5], lines[5], *lines[5:]], "event 5 is missing"),
        (edited(0, format="weightledger.log.2"), "newer release"),
        (edited(0, payloads=False), "--payloads"),
        (edited(0, model="other"), "of the model"),
        (edited(5, reason="another"), "its reason was altered"),
        (edited(5, reason=None), "event 4 of the file: its reason is missing"),
        (edited(5, payload="AAAA"), "does not match its digest"),
        (edited(5, payload="!"), "no base64"),
        (edited(5, header="{}"), "cannot be read"),
        (edited(5, header=7), "is no event"),
        (edited(1, snapshot=None), "the first state is missing"),
        (edited(1, blobs={}), "manifest"),
        (lambda lines: ["nonsense\n"], "no exported log"),
        (lambda lines: [], "no exported log"),
    ],
)
def test_what_is_not_whole_is_refused_and_nothing_is_written(
    lines: list[str], tmp_path: Path, harm: Callable[[list[str]], list[str]], said: str
) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        with pytest.raises(InvalidRequest, match=said):
            import_log(ledger.store, written(tmp_path, harm(lines)))
        assert ledger.models() == []


def test_another_log_of_the_model_is_left_alone(lines: list[str], tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.model(MODEL, base={"w": torch.zeros(8)})
        with pytest.raises(InvalidRequest, match="another log"):
            import_log(ledger.store, written(tmp_path, lines))
        assert ledger.history(MODEL).head().seq == 0
    with Ledger.open(f"sqlite:///{tmp_path}/other.db") as ledger, pytest.raises(InvalidRequest):
        import_log(ledger.store, tmp_path / "nowhere.jsonl")


def test_a_checkpoint_of_the_log_holds_for_its_import(lines: list[str], tmp_path: Path) -> None:
    """Its origin is made of the model and the first event, so it is the same log for auditors."""
    with Ledger.open(f"sqlite:///{tmp_path}/one.db") as ledger:
        import_log(ledger.store, written(tmp_path, lines))
        note = Signer.open(tmp_path).checkpoint(ledger.store.model(MODEL))
    with Ledger.open(f"sqlite:///{tmp_path}/two.db") as ledger:
        import_log(ledger.store, tmp_path / "log.jsonl")
        assert str(Signer.open(tmp_path).checkpoint(ledger.store.model(MODEL))) == str(note)
        with pytest.raises(NotFound):
            ledger.store.model("other")
