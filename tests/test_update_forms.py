"""Forms of an update: some elements, low-rank factors, many at once; and many at a time."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.planned import Planned
from weightledger import Caller, IncrementalUpdateRequest, Ledger, Log, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
)
from weightledger.ledger.events import UPDATE_REJECTED
from weightledger.ledger.events.bodies.operands import payload_bytes_of
from weightledger.ledger.events.changes import FACTORS
from weightledger.ledger.store.attached import Append
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.writing.job import Job
from weightledger.ledger.writing.plan import Plan, Write
from weightledger.ledger.writing.update_commands import update_command

Request = IncrementalUpdateRequest


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 8))
    made.register_buffer("steps", torch.zeros(4, dtype=torch.int64))
    made.register_parameter("bf16", torch.nn.Parameter(torch.randn(32, 40).to(torch.bfloat16)))
    return made


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with Ledger.open(database_url) as opened:
        yield opened


@pytest.fixture
def log(ledger: Ledger) -> Log:
    return ledger.model("m", engine=TorchEngine(module()))


def bits(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: lanes(tensor).tobytes() for name, tensor in state.items()}


# Some elements


@pytest.mark.parametrize("update_type", ["additive", "multiplicative", "replace"])
@pytest.mark.parametrize("name", ["0.weight", "bf16"])
def test_an_update_of_some_elements_is_the_whole_update_there_and_nothing_elsewhere(
    log: Log, name: str, update_type: str
) -> None:
    before = log.state()[name].reshape(-1)
    where = torch.randperm(before.numel(), generator=torch.Generator().manual_seed(3))[:50]
    values = torch.randn(50, generator=torch.Generator().manual_seed(4))
    whole = torch.zeros(before.numel())
    whole[where] = values
    expected = before.clone()
    computed = {
        "additive": before.float() + whole * 0.5,
        "multiplicative": before.float() * (1 + whole * 0.5),
        "replace": whole,
    }[update_type].to(before.dtype)
    expected[where] = computed[where]
    event = log.apply(Request(name, values, 0.5, update_type, indices=where))
    after = log.state()[name].reshape(-1)
    assert torch.equal(after, expected)
    (change,) = event.changes
    assert change.changed == int((before != expected).sum())
    log.rollback("head~1")
    assert torch.equal(log.state()[name].reshape(-1), before)


def test_one_number_goes_to_every_index_and_integers_stay_whole(log: Log) -> None:
    log.apply(Request("steps", 7, 1.0, "replace", indices=[3, 0]))
    assert log.state()["steps"].tolist() == [7, 0, 0, 7]
    log.apply(Request("steps", np.array([1, 2]), 1.0, "replace", indices=np.array([2, 1])))
    assert log.state()["steps"].tolist() == [7, 2, 1, 7]
    assert log.apply(Request("steps", [], 1.0, "replace", indices=[])).changes == ()


@pytest.mark.parametrize(
    ("indices", "data", "message"),
    [
        ([0, 0], [1.0, 2.0], "names element 0 twice"),
        ([0, 8], [1.0, 2.0], r"must lie in \[0, 8\)"),
        ([-1], [1.0], r"must lie in \[0, 8\)"),
        ([0, 1], [1.0], "one value for each"),
        ([0.5], [1.0], "flat list of whole numbers"),
        ([[0]], [1.0], "flat list of whole numbers"),
        ([True], [1.0], "flat list of whole numbers"),
        ("0", [1.0], "flat list of whole numbers"),
        ([2**70], [1.0], "flat list of whole numbers"),
        (torch.tensor([0.0]), [1.0], "flat list of whole numbers"),
        ([0], [float("nan")], "must be finite"),
        ([0], None, "must be numbers"),
    ],
)
def test_indices_that_do_not_fit_are_refused(
    log: Log, indices: object, data: object, message: str
) -> None:
    before = log.catch_up().seq
    with pytest.raises(InvalidRequest, match=message):
        log.apply(Request("1.bias", data, indices=indices))
    assert log.catch_up().seq == before


# Low rank


def factors(rows: int, columns: int, rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        "a": torch.randn(rows, rank, generator=generator),
        "b": torch.randn(rank, columns, generator=generator),
    }


@pytest.mark.parametrize(("name", "rows", "columns"), [("0.weight", 48, 64), ("bf16", 32, 40)])
def test_factors_are_stored_as_they_are_and_rebuild_to_the_same_bits(
    ledger: Ledger, log: Log, name: str, rows: int, columns: int
) -> None:
    given = factors(rows, columns)
    before = log.state()
    event = log.apply(Request(name, learning_rate=0.5, factors=given))
    (change,) = event.changes
    assert change.form == FACTORS
    assert event.forward_only
    product = before[name].float() + 0.5 * given["a"] @ given["b"]
    after = log.state()
    torch.testing.assert_close(
        after[name].float(), product.to(before[name].dtype).float(), rtol=1e-2, atol=1e-2
    )
    assert event.payload_size - payload_bytes_of(event.body) < 0.5 * before[name].nbytes
    # Another reader rebuilds it from the log; going back starts from a snapshot.
    assert bits(ledger.history("m").state("head")) == bits(after)
    log.apply(Request(name, 1.0, 0.1))
    log.rollback(f"seq:{event.seq}")
    assert bits(log.state()) == bits(after)
    log.rollback("seq:0")
    assert bits(log.state()) == bits(before)
    with log.projector.engine.lease() as live:
        assert bits(dict(live.module.state_dict())) == bits(before)
    report = verify(ledger.history("m"))
    assert report.ok, report.problem


def test_factors_that_save_nothing_become_a_reversible_difference(log: Log) -> None:
    event = log.apply(Request("1.weight", factors=factors(8, 48, rank=8)))
    assert not event.forward_only


@pytest.mark.parametrize(
    ("name", "given", "more", "message"),
    [
        ("0.weight", {"a": torch.ones(48, 2)}, {}, "must have a"),
        ("0.weight", factors(47, 64), {}, r"a \[48, r\] and b \[r, 64\]"),
        ("0.weight", {"a": torch.ones(48, 2), "b": torch.ones(3, 64)}, {}, "r from 1 to 48"),
        ("0.weight", {"a": torch.ones(48, 49), "b": torch.ones(49, 64)}, {}, "r from 1 to 48"),
        ("0.weight", {"a": [[1.0], [2.0, 3.0]], "b": torch.ones(1, 64)}, {}, "ragged"),
        ("0.weight", {"a": torch.full((48, 1), torch.inf), "b": torch.ones(1, 64)}, {}, "finite"),
        ("0.bias", factors(48, 1, 1), {}, "two or more dimensions"),
        ("0.weight", factors(48, 64), {"update_type": "replace"}, "must be additive"),
        ("0.weight", factors(48, 64), {"update_data": 1.0}, "in the place of update_data"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    log: Log, name: str, given: dict, more: dict, message: str
) -> None:
    before = log.catch_up().seq
    with pytest.raises(InvalidRequest, match=message):
        log.apply(Request(name, factors=given, **more))
    assert log.catch_up().seq == before


def test_factors_that_overflow_are_a_refusal_that_stays_in_the_log(log: Log) -> None:
    huge = {"a": torch.full((48, 1), 3e38), "b": torch.full((1, 64), 3e38)}
    assert log.apply(Request("0.weight", learning_rate=1.0, factors=huge)).kind == UPDATE_REJECTED


# Many at once


def test_a_batch_is_one_event_that_does_what_its_updates_do_one_by_one(
    database_url: str, log: Log
) -> None:
    requests = [
        Request("0.weight", 1.0, 0.5),
        Request("0.weight", 0.1, 1.0, "multiplicative"),
        Request("1.bias", [1.0, 2.0], 1.0, indices=[1, 5]),
        Request("1.bias", 3.0, 1.0, indices=[2]),
        Request("bf16", factors=factors(32, 40)),
        Request("steps", [1, 2, 3, 4], update_type="replace"),
    ]
    with Ledger.open(database_url) as ledger:
        singly = ledger.model("singly", base=module())
        for request in requests:
            singly.apply(request)
        event = log.apply_batch(requests, metadata={"run": 1})
        assert bits(log.state()) == bits(singly.state())
        assert [change.name for change in event.changes] == [
            *("weights/0.weight", "weights/1.bias", "weights/bf16", "weights/steps")
        ]
        assert [fact["parameter"] for fact in event.body["updates"]] == [
            request.parameter_name for request in requests
        ]
        log.rollback("seq:0")
        assert bits(log.state()) == bits(singly.state("seq:0"))
        log.rollback(f"seq:{event.seq}")
        assert bits(log.state()) == bits(singly.state())
        assert verify(ledger.history("m")).ok


@pytest.mark.parametrize(
    ("requests", "error", "message"),
    [
        ([], InvalidRequest, "1 to 4096 updates, got 0"),
        ([Request("0.bias", 1.0), Request("nope", 1.0)], NotFound, "'nope' not found"),
        ([Request("0.bias", 1.0), Request("0.bias", [1.0])], InvalidRequest, "got 1 values"),
        ([Request("0.bias", 1.0, actor="me")], InvalidRequest, "has its own actor"),
    ],
)
def test_one_update_that_does_not_fit_refuses_the_batch(
    log: Log, requests: list[Request], error: type[Exception], message: str
) -> None:
    before = log.catch_up().seq, bits(log.state())
    with pytest.raises(error, match=message):
        log.apply_batch(requests)
    assert (log.catch_up().seq, bits(log.state())) == before


def test_a_batch_that_overflows_in_one_place_is_refused_whole(log: Log) -> None:
    before = bits(log.state())
    event = log.apply_batch([Request("0.bias", 1.0), Request("1.bias", 3e38, 1.0)] * 2)
    assert event.kind == UPDATE_REJECTED
    assert bits(log.state()) == before


# Beside the weights


def test_tensors_beside_the_weights_change_with_them_and_roll_back_with_them(
    database_url: str, log: Log
) -> None:
    def learn(number: int, keep: bool = True) -> None:
        log.execute(
            Planned(
                lambda staged: Plan(
                    {"operation": "learn"},
                    {"0.bias": Write(staged.tensor("weights/0.bias") + number)},
                    {
                        "rule/trace": torch.full((number,), float(number)) if keep else None,
                        "rule/count": torch.tensor(number),
                    },
                )
            )
        )

    start = bits(log.state())
    states = [start]
    for number in (1, 2, 3):
        learn(number, keep=number != 2)
        states.append(bits(log.state()))
    assert "rule/trace" not in states[2]
    assert log.state()["rule/trace"].tolist() == [3.0] * 3
    for seq in (2, 0, 3, 1):
        log.rollback(f"seq:{seq}")
        assert bits(log.state()) == states[seq]
        assert set(log.live.auxiliary) == {n for n in states[seq] if n.startswith("rule/")}
    log.snapshot()
    log.rollback("seq:2")
    with Ledger.open(database_url) as again:
        reopened = again.model("m", engine=TorchEngine(module()))
        assert bits(reopened.state()) == states[2]
        assert reopened.live.auxiliary["rule/count"].item() == 2
        assert "rule/count" not in reopened.specs
        assert all(p.name in reopened.specs for p in again.history("m").parameters())
        report = verify(again.history("m"))
        assert report.ok, report.problem


# Many at a time


def queue(log: Log, request: Request) -> Job:
    return log.submit(update_command(request, log.specs, log.first_names))


def test_queued_updates_share_transactions_and_each_is_its_own_event(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = log.history.store
    append, sizes = store.append, []

    def counted(*items: Append) -> None:
        sizes.append(len(items))
        append(*items)

    monkeypatch.setattr(store, "append", counted)
    before = log.state()["0.bias"]
    jobs = [queue(log, Request("0.bias", 1.0, 1.0)) for _ in range(100)]
    refused = queue(log, Request("0.bias", float("nan")))
    stale = queue(log, Request("0.bias", 1.0, expected_seq=1))
    log.drain()
    assert [job.result().seq for job in jobs] == list(range(1, 101))
    with pytest.raises(InvalidRequest):
        refused.result()
    with pytest.raises(PreconditionFailed):
        stale.result()
    expected = before.clone()
    for _ in range(100):
        expected += 1.0
    assert torch.equal(log.state()["0.bias"], expected)
    with log.projector.engine.lease() as live:
        assert live.seq == 100
        assert torch.equal(live.module.get_parameter("0.bias"), expected)
    assert len(sizes) < 10 and sum(sizes) == 100
    assert torch.equal(log.state("seq:37")["0.bias"], log.state("seq:36")["0.bias"] + 1.0)
    assert verify(log.history).ok


def test_an_expected_seq_is_held_against_what_is_queued_before_it(log: Log) -> None:
    first = queue(log, Request("0.bias", 1.0))
    late = queue(log, Request("0.bias", 2.0, expected_seq=0))
    next_ = queue(log, Request("0.bias", 3.0, expected_seq=1))
    log.drain()
    assert (first.result().seq, next_.result().seq) == (1, 2)
    with pytest.raises(PreconditionFailed, match="the last state change is seq 1"):
        late.result()


def test_an_append_that_fails_takes_its_whole_transaction_and_nothing_else(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = log.history.store
    append = store.append

    def failing(*items: Append) -> None:
        monkeypatch.undo()
        append(*items[:-1], *items[:1])  # the last one's place is taken: nothing is stored

    monkeypatch.setattr(store, "append", failing)
    jobs = [queue(log, Request("0.bias", 1.0, 1.0)) for _ in range(5)]
    log.drain()
    assert [job.result().seq for job in jobs] == [1, 2, 3, 4, 5]
    assert verify(log.history).ok


def test_an_interrupt_after_the_append_leaves_nobody_waiting(log: Log) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    log.subscribe(interrupt)
    jobs = [queue(log, Request("0.bias", 1.0, 1.0)) for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        log.drain()
    assert [job.result().seq for job in jobs] == [1, 2, 3]


def test_an_idempotency_key_within_one_transaction_is_used_once(log: Log) -> None:
    one = [queue(log, Request("0.bias", 1.0, idempotency_key="k")) for _ in range(3)]
    other = queue(log, Request("0.bias", 2.0, idempotency_key="k"))
    log.drain()
    assert {future.result().seq for future in one} == {1}
    with pytest.raises(IdempotencyMismatch):
        other.result()


def test_readers_see_committed_states_only_while_threads_write(log: Log) -> None:
    seen: dict[int, bytes] = {}
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with log.projector.engine.lease() as live:
                value = lanes(live.module.get_parameter("0.bias")).tobytes()
                assert seen.setdefault(live.seq, value) == value
                assert log.history.event(f"seq:{live.seq}").state_after == live.digest

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(8) as pool:
        events = list(
            pool.map(
                lambda n: log.apply(Request("0.bias", float(n), 0.1, actor=f"t{n % 8}")), range(120)
            )
        )
    stop.set()
    for reader in readers:
        reader.join()
    assert sorted(event.seq for event in events) == list(range(1, 121))
    for seq, value in seen.items():
        assert lanes(log.state(f"seq:{seq}")["0.bias"]).tobytes() == value
    assert verify(log.history).ok


def test_a_write_that_is_planned_needs_a_digest_for_its_key(log: Log) -> None:
    with pytest.raises(InvalidRequest, match="needs the digest"):
        log.execute(Planned(lambda staged: Plan({}), Caller(idempotency_key="k")))
