"""Small events in a line: one pass comes to what replay comes to, or leaves it to replay."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import orjson
import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger, Log
from weightledger.ledger.events import Event
from weightledger.ledger.history import replay as general
from weightledger.ledger.history.small_replay import replay_small
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.lanes import clone
from weightledger.ledger.tensors.spec import WEIGHTS
from weightledger.ledger.tensors.state import StateDigest

SHAPES = {"w": (16, 16), "b": (3,), "half": (40,)}
Line = list[tuple[bytes, bytes]]


class Way:
    """A state, its tensors, and a few events behind it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.base: StateDigest = log.live.state
        self.tensors = {n: clone(log.projector.tensor(WEIGHTS + n)) for n in SHAPES}
        start = log.live.head.seq
        for name, more in (
            ("w", {}),
            ("b", {}),
            ("w", {"indices": list(range(0, 90, 9)), "shape": (10,)}),
            ("half", {}),
            ("w", {"update_type": "replace"}),
        ):
            shape = more.pop("shape", SHAPES[name])  # type: ignore[attr-defined]
            data = torch.randn(shape)
            log.apply(IncrementalUpdateRequest(name, data, 0.1, **more))  # type: ignore[arg-type]
        self.news = log.history.store.news(start, 99)
        self.events: list[Event] = [event for event, _ in self.news]
        self.expected = log.live.head.state_after

    @property
    def line(self) -> Line:
        return [(bytes(event.body_json), payload or b"") for event, payload in self.news]

    def tensor(self, name: str) -> torch.Tensor:
        return clone(self.tensors[name.removeprefix(WEIGHTS)])

    def small(self, line: Line) -> general.RebuiltTensors | None:
        return replay_small(self.base, line, self.tensor, self.expected)


@pytest.fixture
def way(sqlite_url: str) -> Iterator[Way]:
    torch.manual_seed(3)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    base["half"] = base["half"].to(torch.bfloat16)
    with Ledger.open(sqlite_url) as ledger:
        yield Way(ledger.model("m", base=base))


def test_it_comes_to_what_replay_comes_to(way: Way) -> None:
    payloads = {event.seq: payload or b"" for event, payload in way.news}
    moves = [general.Move(event, undo=False) for event in way.events]
    sources = general.Sources(
        way.tensor,
        lambda events: [Portion.whole(payloads[event.seq]) for event in events],
        way.log.history.whole,
    )
    with ThreadPoolExecutor(1) as pool:
        other = general.replay(way.base, moves, sources, way.expected, pool)
    small = way.small(way.line)
    assert small is not None
    assert small.state.value == other.state.value == way.expected
    assert small.state.digests == other.state.digests
    assert small.chunks == other.chunks
    assert small.tensors.keys() == other.tensors.keys() == {WEIGHTS + name for name in SHAPES}
    for name, tensor in small.tensors.items():
        assert torch.equal(tensor, other.tensors[name])


def said(change: Callable[[dict[str, Any]], object], at: int = 2) -> Callable[[Line], None]:
    """Another body of one event, whose payload stays."""

    def changed(line: Line) -> None:
        body = orjson.loads(line[at][0])
        change(body)
        line[at] = orjson.dumps(body), line[at][1]

    return changed


def stored(change: Callable[[bytes], bytes]) -> Callable[[Line], None]:
    def changed(line: Line) -> None:
        line[2] = line[2][0], change(line[2][1])

    return changed


def another(digest: str) -> str:
    return digest[:-1] + ("0" if digest[-1] != "0" else "1")


WRONG: dict[str, Callable[[Line], object]] = {
    "an event is missing": lambda line: line.pop(2),
    "an event comes twice": lambda line: line.insert(2, line[2]),
    "it starts elsewhere": said(
        lambda body: body["tensors"][0].update(before=another(body["tensors"][0]["before"]))
    ),
    "it leads elsewhere": said(
        lambda body: body["tensors"][0].update(after=another(body["tensors"][0]["after"]))
    ),
    "it leads elsewhere in the end": said(
        lambda body: body["tensors"][0].update(after=another(body["tensors"][0]["after"])), at=4
    ),
    "it leads nowhere": said(lambda body: body["tensors"][0].pop("after")),
    "another form": said(lambda body: body["tensors"][0].update(form="whole")),
    "a tensor that there is not": said(lambda body: body["tensors"][0].update(name="weights/x")),
    "a shorter part": said(lambda body: body["tensors"][0].update(size=1)),
    "a part of negative length": said(lambda body: body["tensors"][0].update(size=-1)),
    "operands of another length": said(lambda body: body["operands"].update(tensors=[])),
    "operands of a dtype that there is not": said(
        lambda body: body["operands"]["tensors"][0].update(dtype="float13")
    ),
    "a body of another kind": said(lambda body: body.update(tensors=7)),
    "bytes behind its payload": stored(lambda payload: payload + b"\0"),
    "a payload that ends early": stored(lambda payload: payload[:-1]),
    "no payload": stored(lambda payload: b""),
    "zeros for its payload": stored(lambda payload: bytes(len(payload))),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_does_not_match_is_left_to_replay(way: Way, wrong: Callable[[Line], object]) -> None:
    line = way.line
    wrong(line)
    assert way.small(line) is None


def test_other_bits_to_begin_with_or_another_state_at_the_end_are_left_to_replay(way: Way) -> None:
    assert replay_small(way.base, way.line, way.tensor, bytes(32)) is None
    way.tensors["w"].view(torch.int32)[3, 5] ^= 1
    assert way.small(way.line) is None


def test_what_is_large_is_left_to_replay(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightledger.ledger.history.small_replay.SMALL_BYTES", 1500)
    assert way.small(way.line) is None


def test_bodies_may_be_read_as_headers_have_them(way: Way) -> None:
    line = [(msgspec.Raw(body), payload) for body, payload in way.line]
    assert replay_small(way.base, line, way.tensor, way.expected) is not None
