"""Verification and replay shared out: the same reports and bits, every payload read once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import new_database
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.audit import parallel as audit
from weightledger.ledger.audit import states
from weightledger.ledger.audit.report import Report
from weightledger.ledger.audit.split_payloads import check_together
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.debug import diff as comparing
from weightledger.ledger.debug import parallel as debug
from weightledger.ledger.debug import replaying
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.debug.whatif import parallel as whatif
from weightledger.ledger.errors import CorruptLedger, NotDefined, StorageError
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor, TaskFinished, Told, untold
from weightledger.ledger.parallel.choosing import executing
from weightledger.ledger.parallel.doing import asked, do, result_of
from weightledger.ledger.parallel.local import LocalExecutor
from weightledger.ledger.parallel.shares import Share, shares
from weightledger.ledger.store.sql_events import SqlEvents

MODEL = "m"
LAYERS, ELEMENTS = 12, 70_000


def write(url: str, blob_url: str | None = None) -> None:
    """A history of large payloads and small ones, on two branches, with a tensor that comes late
    and an alias."""
    random = torch.Generator().manual_seed(4)
    base = {f"layers.{n}": torch.randn(ELEMENTS, generator=random) for n in range(LAYERS)}
    base["bias"] = torch.zeros(7, dtype=torch.bfloat16)
    with Ledger.open(url, blob_url=blob_url) as ledger:
        log = ledger.model(MODEL, base=base, alpha=1e9)
        for round_ in range(4):
            state = log.state()
            log.record({name: tensor + 0.01 * torch.randn(tensor.shape, generator=random).to(tensor)
                        for name, tensor in state.items()})  # fmt: skip
            log.apply_batch(
                [
                    IncrementalUpdateRequest(f"layers.{n}", [1.0], indices=[round_])
                    for n in range(LAYERS)
                ]
            )
            if round_ == 2:
                log.rollback("seq:3")
        log.create_version("last")


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "folder"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The history whose payloads are rows of either database, or files."""
    if request.param == "folder":
        yield request.getfixturevalue("in_folder")
        return
    with new_database(request, request.param, tmp_path_factory.mktemp("shared")) as made:
        write(made)
        yield made


@pytest.fixture(scope="module")
def two() -> Iterator[Executor]:
    """Two processes, which every test here uses; forked, for they have all that they need."""
    with executing("local", 2, prepare=lambda: None) as executor:
        yield executor


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The history whose payloads are files."""
    folder = tmp_path_factory.mktemp("in-folder")
    write(f"sqlite:///{folder}/ledger.db", str(folder / "blobs"))
    return f"sqlite:///{folder}/ledger.db"


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small work is shared out too."""
    monkeypatch.setattr(audit, "worth", lambda seconds, executor: executor.jobs)
    monkeypatch.setattr(debug, "worth", lambda seconds, executor: executor.jobs)
    monkeypatch.setattr(whatif, "worth", lambda seconds, executor: executor.jobs)
    monkeypatch.setattr(audit, "_STRETCH", 4)


class Here:
    """Does shares one after the other in this process, where what they read can be counted."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.start_s = 0.0

    def run(self, tasks: Any, told: Told = untold) -> Iterator[TaskFinished]:
        for number, task in enumerate(tasks):
            yield TaskFinished(number, result_of(do(asked(task), told)))

    def close(self) -> None:
        pass


def report_of(url: str, executor: Executor) -> Report:
    with reading(url, MODEL) as history:
        return verify(history, executor=executor)


def test_however_many_share_it_the_report_is_the_same(url: str) -> None:
    alone = report_of(url, Here(1))
    assert alone.ok and alone.states > 8 and alone.snapshots == 1
    for jobs in (2, 3, 8):
        assert report_of(url, Here(jobs)) == alone


def test_every_payload_is_read_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a verification, but for the small ones and a chunk of each where shares meet; by a replay
    not even that."""
    read = 0
    portions = SqlEvents.portions

    def counted(self: SqlEvents, wanted: Any) -> Any:
        nonlocal read
        found = portions(self, wanted)
        read += sum(len(data) for portion in found for _, data in portion.pieces)
        return found

    monkeypatch.setattr(SqlEvents, "portions", counted)
    payload = report_of(url, Here(1)).payload_bytes
    assert read == 0
    assert report_of(url, Here(2)).ok
    assert payload <= read <= 1.1 * payload
    with reading(url, MODEL) as history:
        at = history.resolve("head")
        way = history.ways.travel(at.node, lambda _, path: path)
        needed = sum(history.require(seq).payload_size for seq in (*way.undo, *way.redo))
        for jobs in (2, 4):
            read = 0
            _restored(history, jobs)
            assert 0.9 * needed <= read <= 1.1 * needed


def _restored(history: History, count: int) -> dict[str, torch.Tensor]:
    at = history.resolve("head")
    state = history.digests(at.node)
    tensors: dict[str, torch.Tensor] = {}
    for share in shares({name: spec.nbytes for name, spec in state.specs.items()}, count):
        tensors |= history.tensors(at.node, at.state, share.of(state.specs))
    return tensors


def test_a_share_holds_its_own_bits_and_no_others(url: str) -> None:
    with reading(url, MODEL) as history:
        whole = Walker(history).to(history.resolve("head").node).tensors
        parts = _restored(history, 3)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_killed_worker_changes_nothing_in_the_report(in_folder: str, two: Executor) -> None:
    """One that is killed while it rebuilds states; what it did is done again."""
    alone = report_of(in_folder, Here(1))
    assert report_of(in_folder, two) == alone
    assert isinstance(two, LocalExecutor)
    pids = [worker._process.pid for worker in two._idle]
    killed: list[int] = []

    def told(done: int, total: int) -> None:
        for pid in pids if not killed else ():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with reading(in_folder, MODEL) as history:
        assert verify(history, told, executor=two) == alone
    assert killed


def test_shares_find_the_first_bad_event_and_say_what_one_process_says(
    tmp_path: Path,
) -> None:
    """Bits of a payload, at its beginning, in the middle and at its end."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    write(url, str(tmp_path / "blobs"))
    with reading(url, MODEL) as history:
        event = history.require(3)
        (ref, *_) = event.payload
        file = tmp_path / "blobs" / ref.digest.hex()[:2] / ref.digest.hex()
    sound = file.read_bytes()
    for at in (0, 40, len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        alone = report_of(url, Here(1))
        assert alone.bad_seq == 3 and ref.digest.hex() in str(alone.problem)
        for jobs in (2, 4):
            shared = report_of(url, Here(jobs))
            assert (shared.problem, shared.bad_seq) == (alone.problem, 3)
            assert shared.events == alone.events
    file.write_bytes(sound)
    assert report_of(url, Here(2)).ok


def test_bytes_that_lead_to_the_same_bits_are_not_passed(tmp_path: Path) -> None:
    """A payload that decodes to the same is still not the recorded one: every byte is checked."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    write(url)
    with reading(url, MODEL) as history:
        told: list[Any] = []
        parts = shares({f"weights/layers.{n}": 1 for n in range(LAYERS)}, 3)
        for share in parts:
            chunks = states.rebuild(
                history, Report(MODEL), untold, history.head().seq + 1, 1, share
            )
            told += chunks
    check_together(told)
    broken = told[0]._replace(digests=bytes(32) + told[0].digests[32:])
    with pytest.raises(CorruptLedger, match="does not match its digest"):
        check_together([broken, *told[1:]])
    with pytest.raises(CorruptLedger, match="not every chunk"):
        check_together(told[1:])


def test_a_state_that_several_write_is_the_file_that_one_writes(
    in_folder: str, two: Executor, tmp_path: Path
) -> None:
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    with reading(in_folder, MODEL) as history:
        facts = debug.save(history, "v1", one, Here(1))
        assert debug.save(history, "v1", several, two) == facts
    expected, got = load_file(one), load_file(several)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with safe_open(one, "pt") as first, safe_open(several, "pt") as second:
        assert first.metadata() == second.metadata()
    assert one.stat().st_size == several.stat().st_size


@pytest.mark.parametrize("without", [["seq:9"], ["seq:8", "seq:9"]])
def test_a_what_if_is_the_same_by_shares(
    in_folder: str, two: Executor, tmp_path: Path, without: list[str]
) -> None:
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    asked = replaying.StateRequest("head", without)
    with reading(in_folder, MODEL) as history:
        alone = replaying.described_by(history, asked, Here(1))
        assert alone["changed"] and not alone["same"]
        for executor in (Here(5), two):
            assert replaying.described_by(history, asked, executor) == alone
        facts = replaying.save(history, asked, one, executor=Here(1))
        assert replaying.save(history, asked, several, executor=two) == facts
    expected, got = load_file(one), load_file(several)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with safe_open(one, "pt") as first, safe_open(several, "pt") as second:
        assert first.metadata() == second.metadata()


def test_what_is_not_defined_is_refused_in_the_same_words(in_folder: str, tmp_path: Path) -> None:
    said = set()
    with reading(in_folder, MODEL) as history:
        for jobs in (1, 3):
            asked = replaying.StateRequest("head", ["seq:1"])
            with pytest.raises(NotDefined, match="was touched again by update_") as refused:
                replaying.described_by(history, asked, Here(jobs))
            said.add(str(refused.value))
    assert len(said) == 1


def test_many_states_are_written_by_stretches(
    in_folder: str, two: Executor, tmp_path: Path
) -> None:
    with reading(in_folder, MODEL) as history:
        nodes = [0, 1, 3, 4, 6]
        files = {node: tmp_path / f"{node}.safetensors" for node in nodes}
        facts = debug.save_each(history, files, two)
        assert sorted(facts) == nodes
        walker = Walker(history)
        for node in nodes:
            state = walker.to(node)
            assert facts[node]["digest"] == state.digest.value.hex()
            got = load_file(files[node])
            assert all(torch.equal(got[name], state.weights[name]) for name in got)


def test_what_differs_is_the_same_by_shares(
    in_folder: str, two: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number, also those that JSON has no words for."""
    monkeypatch.setattr(comparing, "worth", lambda seconds, executor: executor.jobs)
    with reading(in_folder, MODEL) as history:
        alone = comparing.diff(history, "seq:0", "head")
        shared = comparing.diff(history, "seq:0", "head", executor=two)
        assert len(alone.tensors) > LAYERS
        assert shared == alone
        assert comparing.diff(history, "seq:1", "seq:1", executor=two).tensors == []


def test_a_place_that_cannot_be_written_is_named(in_folder: str, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "state.safetensors"
    with (
        reading(in_folder, MODEL) as history,
        pytest.raises(StorageError, match=f"cannot write {out}"),
    ):
        debug.save(history, "head", out, Here(2))


def test_shares_are_ranges_of_names_of_about_the_same_work() -> None:
    work = {f"{n:02}": 1 + n % 3 for n in range(30)}
    for count in range(1, 9):
        parts = shares(work, count)
        assert len(parts) == count
        sizes = [sum(work[name] for name in part.of(work)) for part in parts]
        assert sum(sizes) == sum(work.values())
        assert max(sizes) - min(sizes) <= 4
        assert sum(name in part for part in parts for name in ("", "zz", "05x")) == 3
    assert shares({"only": 7}, 4) == [Share()]
    assert len(shares({"a": 100, "b": 1, "c": 1}, 3)) <= 3
