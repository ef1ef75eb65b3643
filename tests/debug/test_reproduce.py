"""Replies of a real server, computed anew on the states that they came from."""

import base64
import json
import math
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests import patient
from tests.api.test_command import inside
from tests.in_process import listening
from tests.lora import save_adapter
from tests.serving import Server
from tests.text_models import MINILM, save_llama
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    NotFound,
    Pruned,
    TorchEngine,
)
from weightledger.api import reproduce
from weightledger.ledger.debug.agreement import agreement
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.retention import collect

ROWS = {"inputs": torch.rand(5, 64, generator=torch.Generator().manual_seed(3)).tolist()}
GREEDY = {"prompt": ["the quick", "every reply"], "max_tokens": 12, "temperature": 0}
DRAWN = {"prompt": "the lazy dog", "max_tokens": 12, "temperature": 1.3, "seed": 11}
CHAT = {"messages": [{"role": "user", "content": "fox"}], "max_tokens": 8, "temperature": 0}

# One-dimensional weights of the text models, and their lengths.
MOVED = {"model.norm.weight": 48, "embeddings.LayerNorm.weight": 384}


class Old:
    """A reply as its client kept it."""

    def __init__(self, answer: httpx2.Response) -> None:
        assert answer.status_code == 200, answer.text
        self.body = answer.json()
        self.seq = int(answer.headers["x-weights-seq"])
        self.digest = answer.headers["x-weights-digest"]


@pytest.fixture(scope="module")
def replies(server: Server) -> list[Old]:
    """Of the digits model, with updates and a rollback between them and after the last one."""
    kept = []
    with server.client() as http:

        def ask() -> None:
            kept.append(Old(http.post("/invocations", json=ROWS)))

        def update(name: str, step: float) -> None:
            body = {"parameter_name": name, "update_data": step, "learning_rate": 1.0}
            assert http.post("/v1/models/incremental_update", json=body).json()["success"]

        ask()
        update("0.weight", 0.001)
        ask()
        update("2.bias", 0.01)
        ask()
        back = {"version_id": f"seq:{kept[1].seq}"}
        assert http.post("/v1/models/rollback", json=back).is_success
        ask()
        for _ in range(3):
            update("2.weight", 0.002)
    return kept


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on the server's folder; status, facts, stderr."""
    monkeypatch.setenv("NO_COLOR", "1")

    def command(
        request: Any, reply: Any, *options: str, route: str = "invocations"
    ) -> tuple[int, dict[str, Any], str]:
        files = {"request": tmp_path / "asked.json", "reply": tmp_path / "got.json"}
        for name, body in (("request", request), ("reply", reply)):
            files[name].write_text(body if isinstance(body, str) else json.dumps(body))
        named = [word for name, file in files.items() for word in (f"--{name}", str(file))]
        at = ("--data-dir", str(server.folder), "--json")
        status, out, err = inside("reproduce", route, *named, *options, *at)
        return status, json.loads(out) if out else {}, err

    return command


def test_old_replies_are_computed_again_bit_for_bit(run: Any, replies: list[Old]) -> None:
    assert replies[1].digest == replies[3].digest  # which the rollback came back to
    assert len({one.seq for one in replies}) == 4
    for old in replies:
        for named in (
            ("--seq", str(old.seq), "--digest", old.digest),
            ("--seq", str(old.seq)),
            ("--digest", old.digest),
        ):
            status, facts, err = run(ROWS, old.body, *named)
            assert (status, facts["verdict"]) == (0, "same"), (facts, err)
            assert (facts["digest"], facts["values"], facts["differing"]) == (old.digest, 50, 0)
    assert facts["now"]["torch"] == torch.__version__
    assert facts["now"]["threads"] == torch.get_num_threads()
    assert facts["now"]["dtypes"] == ["float32"]
    assert facts["promised_when"]
    assert facts["not_promised"] == []


def test_a_server_computes_old_replies_again_beside_what_it_serves(
    server: Server, replies: list[Old], tmp_path: Path
) -> None:
    """By its own threads, so whatever they are the bits are the same."""
    files = [str(tmp_path / name) for name in ("asked", "got")]
    Path(files[0]).write_text(json.dumps(ROWS))
    with server.client() as http:
        live = http.get("/v1/models/status").json()
        for old in replies:
            asked = {"route": "/invocations", "request": ROWS, "reply": old.body, "seq": old.seq}
            told = http.post("/v1/models/reproduce", json=asked).json()
            assert (told["verdict"], told["digest"]) == ("same", old.digest), told
            Path(files[1]).write_text(json.dumps(old.body))
        words = ("--request", files[0], "--reply", files[1], "--url", server.url, "--json")
        status, out, err = inside("reproduce", "invocations", *words, "--digest", old.digest)
        assert (status, json.loads(out)["verdict"]) == (0, "same"), err
        status, _, err = inside("reproduce", "invocations", *words, "--seq", str(replies[0].seq))
        assert status == 1
        status, _, err = inside("reproduce", "invocations", *words, "--seq", "99999")
        assert (status, "not found" in err) == (2, True)
        for wrong, code in (
            ({**asked, "seq": 99999}, 404),
            ({**asked, "digest": "abc"}, 400),
            ({**asked, "route": "/nowhere"}, 400),
            ({**asked, "request": {"inputs": [[1.0]]}}, 400),
            ({**asked, "reply": {}}, 400),
            ({**asked, "reply": {"predictions": [[math.nan]]}}, 400),
            ({**asked, "reply": {"predictions": [{"a": [-math.inf]}]}}, 400),
        ):
            sent = {"content": json.dumps(wrong), "headers": {"content-type": "application/json"}}
            assert http.post("/v1/models/reproduce", **sent).status_code == code
        assert http.get("/v1/models/status").json() == live


def test_one_changed_bit_is_noticed_and_named(run: Any, replies: list[Old]) -> None:
    old = replies[2]
    changed = json.loads(json.dumps(old.body))
    before = changed["predictions"][3][7]
    changed["predictions"][3][7] = after = math.nextafter(before, math.inf)
    status, facts, _ = run(ROWS, changed, "--seq", str(old.seq))
    assert (status, facts["verdict"], facts["differing"]) == (1, "different", 1)
    assert facts["first_difference"] == {
        "path": "predictions[3][7]",
        "expected": after,
        "got": before,
        "at": None,
    }
    assert (facts["largest_difference"], facts["largest_at"]) == (
        after - before,
        "predictions[3][7]",
    )


def test_a_reply_of_another_state_differs(run: Any, replies: list[Old]) -> None:
    status, facts, _ = run(ROWS, replies[0].body, "--seq", str(replies[2].seq))
    assert (status, facts["verdict"]) == (1, "different")
    distances = [
        abs(one - other)
        for row, others in zip(
            replies[0].body["predictions"], replies[2].body["predictions"], strict=True
        )
        for one, other in zip(row, others, strict=True)
    ]
    assert facts["largest_difference"] == max(distances)


def test_what_cannot_be_compared_is_status_2_and_says_why(
    run: Any, replies: list[Old], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = replies[1]
    here = ("--seq", str(old.seq))
    wrong = replies[0].digest
    cases: list[tuple[Any, Any, tuple[str, ...], str]] = [
        (ROWS, old.body, ("--seq", "99999"), "not found"),
        (ROWS, old.body, ("--digest", "0" * 64), "no state's digest"),
        (ROWS, old.body, (*here, "--digest", wrong), "the reply is of another ledger"),
        (ROWS, old.body, ("--digest", "abc"), "64 hex digits"),
        (ROWS, old.body, ("--seq=-1",), "0 or more"),
        (ROWS, old.body, (), "say which state"),
        ('{"inputs": [[', old.body, here, "refused with status 400"),
        ({"inputs": [[1.0, 2.0]]}, old.body, here, "the model refused inputs of shape (1, 2)"),
        ({"rows": 3}, old.body, here, "refused with status 400"),
        ({**ROWS, "stream": True}, old.body, here, "leave out stream"),
        (ROWS, "predictions: 3", here, "the reply must be the JSON body"),
        (ROWS, '{"predictions": [[NaN]]}', here, "NaN is no number that a reply has"),
        (ROWS, '{"predictions": [[1e999]]}', here, "1e999 is no number"),
        (ROWS, f'{{"predictions": [[{"9" * 400}]]}}', here, "is no number"),
        (ROWS, [1], here, "must be a JSON object"),
        (ROWS, {"error": {"message": "no"}}, here, "the reply is an error"),
    ]
    for request, reply, options, words in cases:
        status, _, err = run(request, reply, *options)
        assert (status, "Traceback" in err) == (2, False), err
        assert words in " ".join(err.split()), err
    assert run(ROWS, old.body, *here, route="embeddings")[0] == 2
    assert "one of /invocations" in run(ROWS, old.body, *here, route="nowhere")[2]
    monkeypatch.setenv("WEIGHTLEDGER_MODEL", "tests.faults.models:factory")
    assert "the log is of 'digits'" in run(ROWS, old.body, *here)[2]
    monkeypatch.setenv("WEIGHTLEDGER_SERVED_MODEL_NAME", "digits")
    status, _, err = run(ROWS, old.body, *here)
    assert (status, "the loaded model is not the one of the log" in err) == (2, True), err


def test_a_state_that_gc_dropped_is_named_and_an_engine_in_use_is_left_alone(
    sqlite_url: str,
) -> None:
    random = torch.Generator().manual_seed(1)
    with Ledger.open(sqlite_url) as ledger:
        engine = TorchEngine(torch.nn.Linear(400, 500))
        log = ledger.model("m", engine=engine, alpha=1.5)
        log.create_version("start")
        for _ in range(6):
            values = torch.randn(500, 400, generator=random)
            log.apply(IncrementalUpdateRequest("weight", values, update_type="replace"))
        hours_later = time.time_ns() // 1000 + 7_200_000_000
        collect(log.history, dry_run=False, now_us=lambda: hours_later)
        request, reply = {"inputs": [[0.0] * 400]}, {"predictions": [[0.0] * 500]}

        def again(held: TorchEngine, seq: int) -> None:
            reproduce(log.history, held, "/invocations", request, reply, seq=seq)

        for seq, refusal in ((3, Pruned), (99, NotFound)):
            with pytest.raises(refusal):
                again(TorchEngine(torch.nn.Linear(400, 500)), seq)
        with pytest.raises(
            InvalidRequest, match=r"1 of its tensors are not in the state \(extra\)"
        ):
            again(TorchEngine(_Extra(400, 500)), engine.current().seq)
        before = engine.current().seq
        with pytest.raises(InvalidRequest, match="shows a model already"):
            again(engine, engine.current().seq)
        assert engine.current().seq == before


class _Extra(torch.nn.Linear):
    """The model with a tensor more."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("extra", torch.zeros(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As bits are compared between threads of the server and the test's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_generated_text_is_generated_again(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "tiny-llama")
    adapter = save_adapter(tmp_path / "adapter", 1)
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data")
    manager = DynamicModelManager(TransformersEngine.load(folder), "tiny", config=config)
    asked: list[tuple[str, Mapping[str, Any]]] = [
        ("/v1/completions", GREEDY),
        ("/v1/completions", DRAWN),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {**GREEDY, "model": "style"}),
    ]
    with listening(manager) as url, patient.Client(base_url=url) as http:
        load = {"lora_name": "style", "lora_path": str(adapter)}
        assert http.post("/v1/load_lora_adapter", json=load).is_success
        _move(http, "model.norm.weight")
        kept = [Old(http.post(route, json=body)) for route, body in asked]
        for _ in range(2):
            _move(http, "model.norm.weight")
        unload = {"lora_name": "style"}
        assert http.post("/v1/unload_lora_adapter", json=unload).is_success
        history = manager.log.history
        for (route, body), old in zip(asked, kept, strict=True):  # beside what it serves
            sent = {"route": route, "request": body, "reply": old.body, "digest": old.digest}
            told = http.post("/v1/models/reproduce", json=sent)
            assert told.json().get("verdict") == "same", told.text

        def again(number: int, **changes: Any) -> Any:
            (route, body), old = asked[number], kept[number]
            facts = {"reply": old.body, "seq": old.seq, "digest": old.digest, **changes}
            reply = facts.pop("reply")
            engine = TransformersEngine.load(folder)
            return reproduce(history, engine, route, changes.pop("request", body), reply, **facts)

        for number in range(len(asked)):
            answer = again(number)
            assert answer.same, answer.agreement
            assert answer.not_promised == ()
        changed = json.loads(json.dumps(kept[0].body))
        text = changed["choices"][1]["text"]
        changed["choices"][1]["text"] = text[:5] + "#" + text[5:]
        first = again(0, reply=changed).agreement.first
        assert (first.path, first.at, first.expected[0]) == ("choices[1].text", 5, "#")
        elsewhere = {**kept[0].body, "system_fingerprint": f"seq-3-{'0' * 16}"}
        with pytest.raises(InvalidRequest, match="system_fingerprint"):
            again(0, reply=elsewhere)
    manager.close()


def _move(http: httpx2.Client, parameter: str) -> None:
    """Far enough that the folder's own weights answer otherwise."""
    steps = torch.randn(MOVED[parameter], generator=torch.Generator().manual_seed(5))
    body = {"parameter_name": parameter, "update_data": steps.tolist(), "learning_rate": 1.0}
    reply = http.post("/v1/models/incremental_update", json=body)
    assert reply.is_success, reply.text


def test_vectors_are_compared_as_numbers_however_they_were_sent(tmp_path: Path) -> None:
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data")
    manager = DynamicModelManager(TransformersEngine.load(MINILM), "minilm", config=config)
    numbers = {"input": ["a quick fox", "weights"]}
    encoded = {**numbers, "encoding_format": "base64"}
    route = "/v1/embeddings"
    with listening(manager) as url, patient.Client(base_url=url) as http:
        _move(http, "embeddings.LayerNorm.weight")
        old = Old(http.post(route, json=encoded))
        _move(http, "embeddings.LayerNorm.weight")
        new = Old(http.post(route, json=numbers))
        history = manager.log.history
        again = reproduce(
            history, TransformersEngine.load(MINILM), route, numbers, old.body, seq=old.seq
        )
        assert again.same, again.agreement
        # Two vectors of 384 with their numbers and words around them.
        assert again.agreement.compared == 2 * 386 + 4
        other = agreement(again.reply["data"], new.body["data"])
        assert (other.same, other.first.path) == (False, "[0].embedding[0]")
        broken = json.loads(json.dumps(old.body))
        nan = base64.b64encode(struct.pack("<f", math.nan) * 384).decode()
        broken["data"][0]["embedding"] = nan
        again = reproduce(
            history, TransformersEngine.load(MINILM), route, encoded, broken, seq=old.seq
        )
        told = again.to_json()
        assert json.dumps(told, allow_nan=False) and told["first_difference"]["expected"] is None
        broken["data"][1]["embedding"] = "?"
        with pytest.raises(InvalidRequest, match="neither numbers nor base64"):
            reproduce(history, TransformersEngine.load(MINILM), route, encoded, broken, seq=old.seq)
    manager.close()


def test_text_that_is_drawn_without_a_seed_is_not_promised() -> None:
    from weightledger.api.reproducing.asked import doubts

    assert doubts("/v1/completions", {"prompt": "x"})
    assert doubts("/v1/completions", {"prompt": "x", "temperature": 0.5})
    assert not doubts("/v1/completions", {"prompt": "x", "temperature": 0})
    assert not doubts("/v1/completions", {"prompt": "x", "seed": 1})
    assert not doubts("/invocations", {})


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        ({"a": [1.0, None]}, {"a": [1.0, None]}, 0),
        ({"a": 1}, {"a": 1.0}, 0),
        ({"a": 0.0}, {"a": -0.0}, 1),
        ({"a": 1}, {"a": True}, 1),
        ({"a": [1, 2]}, {"a": [1]}, 1),
        ({"a": None}, {"a": 1.0}, 1),
        ({"a": 10**400}, {"a": 1.0}, 1),
        ({"a": {}}, {"a": []}, 1),
        ({"a": 1}, {}, 1),
    ],
)
def test_what_counts_as_the_same(one: Any, other: Any, differing: int) -> None:
    assert agreement(one, other).differing == differing
    assert agreement(other, one).differing == differing


def test_no_value_at_all_is_no_agreement() -> None:
    assert not agreement({"predictions": []}, {"predictions": []}).same
