"""Every kind of evaluator: what it says of a model, and what it says when it cannot."""

import contextlib
import gc
import json
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from scipy.stats import spearmanr
from torch import nn

from tests.installed import install
from tests.text_models import MINILM, save_llama
from tests.waiting import until
from weightledger import InvalidRequest, StateEngine, TorchEngine
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.monitoring.evaluation import Evaluator, Scores, scores_of
from weightledger.ledger.monitoring.evaluators.outside import EvaluatorFailed
from weightledger.ledger.monitoring.evaluators.registry import KINDS, evaluator_of
from weightledger.ledger.monitoring.time_limits import EvaluatorHangs, Limited

PATIENT_S = 60.0
INPUTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 3.0]])


def identity() -> nn.Module:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
    return module


ENGINE = TorchEngine(identity())


def made(name: str, engine: Any = ENGINE, timeout_s: float = PATIENT_S) -> Evaluator:
    evaluator = evaluator_of([name], engine, timeout_s)
    assert evaluator is not None
    return evaluator


def score(name: str, module: nn.Module | None = None, engine: Any = ENGINE) -> Scores:
    return scores_of(made(name, engine)(module or identity()))


# In this process


def test_held_out_examples_are_scored_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "held_out.safetensors"
    save_file({"inputs": INPUTS, "labels": torch.tensor([0, 1, 1, 1])}, file)
    told = score(f"held-out:{file}")
    assert told.metrics == {"accuracy": 0.75}
    assert told.items["accuracy"].tolist() == [1.0, 1.0, 0.0, 1.0]
    broken = identity()
    with torch.no_grad():
        broken.weight.fill_(torch.nan)  # whose largest output would be the first
    assert score(f"held-out:{file}", broken).metrics == {"accuracy": 0.0}


def test_a_regressions_error_is_its_mean_square(tmp_path: Path) -> None:
    file = tmp_path / "regression.safetensors"
    save_file({"inputs": INPUTS, "targets": INPUTS + torch.tensor([1.0, 3.0])}, file)
    told = score(f"regression:{file}")
    assert told.metrics == {"error": 5.0}
    assert told.items["error"].tolist() == [-5.0] * 4
    with pytest.raises(InvalidRequest, match="targets are"):
        score(f"regression:{file}", nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"inputs": INPUTS}, "expected inputs and labels"),
        ({"inputs": INPUTS, "labels": torch.zeros(3, dtype=torch.int64)}, "same examples"),
        ({"inputs": INPUTS, "labels": torch.zeros(4)}, "class numbers"),
        ({"inputs": INPUTS[:0], "labels": torch.zeros(0, dtype=torch.int64)}, "at least one"),
    ],
)
def test_a_file_that_cannot_be_is_said_at_once(
    tmp_path: Path, tensors: dict[str, torch.Tensor], problem: str
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InvalidRequest, match=problem):
        made(f"held-out:{tmp_path / 'x.safetensors'}")


def test_perplexity_is_that_of_the_library(tmp_path: Path) -> None:
    engine = TransformersEngine.load(save_llama(tmp_path / "model"))
    text = tmp_path / "text.txt"
    lines = ["the cat sat on the mat", "the dog", "a cat " * 400]  # the last is too long for it
    text.write_text("\n\n".join(lines))
    evaluator: Any = made(f"perplexity:{text}", engine)
    module: Any = engine.prepare({}).module
    told = scores_of(evaluator(module))
    losses, tokens = 0.0, 0
    pieces = evaluator._evaluator._pieces
    assert len(pieces) > 3
    assert max(map(len, pieces)) <= engine.generates.max_tokens
    for piece, item in zip(pieces, told.items["perplexity"], strict=True):
        ids = torch.tensor([piece])
        with torch.inference_mode():
            loss = float(module(ids, labels=ids).loss)
        assert -float(item) == pytest.approx(loss, rel=1e-5)
        losses += loss * (len(piece) - 1)
        tokens += len(piece) - 1
    assert told.metrics["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    with pytest.raises(InvalidRequest, match="does not embed"):
        made(f"similarity:{text}", engine)


def test_similarity_is_spearmans(tmp_path: Path) -> None:
    engine = TransformersEngine.load(MINILM)
    pairs = [
        ("a cat sleeps", "a kitten is asleep", 5.0),
        ("a cat sleeps", "the stock market fell", 0.0),
        ("it rains", "it is raining", 4.5),
        ("it rains", "the sun shines", 1.0),
        ("it rains", "he plays chess", 0.0),
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"a": a, "b": b, "score": s}) for a, b, s in pairs))
    module = engine.prepare({}).module
    told = score(f"similarity:{file}", module, engine)
    assert engine.embeds is not None
    texts = [engine.embeds.tokens(text) for a, b, _ in pairs for text in (a, b)]
    vectors = engine.embeds.embed(module, texts)
    cosines = torch.cosine_similarity(vectors[0::2], vectors[1::2])
    expected = spearmanr(cosines, [s for _, _, s in pairs]).statistic
    assert told.metrics["similarity"] == pytest.approx(expected)
    assert len(told.items["similarity"]) == 5
    file.write_text('{"a": "x", "b": "y"}')
    with pytest.raises(InvalidRequest, match="line 1"):
        made(f"similarity:{file}", engine)
    with pytest.raises(InvalidRequest, match="causal"):
        made(f"perplexity:{file}", engine)


def accuracy_of_half(module: nn.Module) -> dict[str, float]:
    return {"accuracy": 0.5}


def test_a_function_of_a_module_and_one_that_a_package_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score(f"{__name__}:accuracy_of_half").metrics == {"accuracy": 0.5}
    source = (
        "def make(argument, engine, timeout_s):\n"
        "    return lambda module: {'accuracy': float(argument)}\n"
    )
    entries = {"fixed": "brought_evaluator:make"}
    install(tmp_path, "brought_evaluator", "weightledger.evaluators", entries, source)
    monkeypatch.syspath_prepend(tmp_path)
    assert score("fixed:0.25").metrics == {"accuracy": 0.25}


def test_several_give_all_their_metrics_and_see_the_same_state(tmp_path: Path) -> None:
    file = tmp_path / "held_out.safetensors"
    save_file({"inputs": INPUTS, "labels": torch.tensor([0, 1, 1, 1])}, file)
    regression = tmp_path / "regression.safetensors"
    save_file({"inputs": INPUTS, "targets": INPUTS.clone()}, regression)
    both = evaluator_of([f"{__name__}:Destroys", f"regression:{regression}"], ENGINE, PATIENT_S)
    assert both is not None
    told = scores_of(both(identity()))
    assert told.metrics == {"similarity": 1.0, "error": 0.0}
    twice = evaluator_of([f"held-out:{file}", f"{__name__}:accuracy_of_half"], ENGINE, PATIENT_S)
    assert twice is not None
    with pytest.raises(InvalidRequest, match="gives accuracy, which another"):
        twice(identity())
    assert evaluator_of([], ENGINE, PATIENT_S) is None


class Destroys:
    def __call__(self, module: nn.Module) -> dict[str, float]:
        for tensor in module.parameters():
            tensor.data.zero_()
        return {"similarity": 1.0}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "KIND:ARGUMENT"),
        ("accuracy", "KIND:ARGUMENT"),
        ("held_out:x", "held_out"),
        ("no_such_module:f", "no_such_module"),
        (f"{__name__}:no_such_function", "no_such_function"),
        (f"{__name__}:INPUTS", "callable"),
        ("held-out:/no/such/file", "no safetensors"),
        ("command:", "no program"),
        ("command:no-such-program -x", "no program"),
        ("command:sh 'open", "quotation"),
        ("http://", "no server's URL"),
        ("perplexity:x", "causal"),
        ("similarity:x", "embed"),
    ],
)
def test_a_name_that_stands_for_nothing_says_what_would(name: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as told:
        made(name)
    assert told.value.param == "evaluator"


def test_a_model_of_another_process_is_scored_there() -> None:
    class Driven(StateEngine):
        fault = None

        def converge(self) -> None: ...
        def confirm(self) -> None: ...
        def rehearse(self, proposal: str, *, seq: int, digest: bytes) -> None: ...
        def report(self) -> dict[str, Any]:
            return {}

    engine = Driven({"w": torch.zeros(2)})
    for kind in KINDS:
        if kind != "command":
            with pytest.raises(InvalidRequest, match="another process"):
                made(f"{kind}:x", engine)
    assert made(f"command:{sys.executable} -c pass", engine) is not None


# In another process


def script(folder: Path, body: str) -> str:
    file = folder / "score.py"
    file.write_text(f"import json, os, sys, time\n{body}")
    return f"command:{sys.executable} {file} --strict"


def test_a_command_reads_the_state_and_answers_with_items(tmp_path: Path) -> None:
    told = score(
        script(
            tmp_path,
            "from safetensors.numpy import load_file\n"
            "state = load_file(sys.argv[2])\n"
            "print(json.dumps({'metrics': {'accuracy': float(state['weight'].sum()) / 4},"
            " 'items': {'accuracy': [1, 0, 1, 0]}}))",
        )
    )
    assert told.metrics == {"accuracy": 0.5}
    assert told.items["accuracy"].tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("print('hello')", "gave no scores"),
        ("print('[1]')", "expected an object"),
        ("print(json.dumps({'accuracy': 'good'}))", "no number"),
        ("print(json.dumps({'metrics': {'accuracy': 1}, 'items': {'accuracy': []}}))", "items"),
        ("sys.exit('the data are gone')", "status 1: the data are gone"),
        ("os.kill(os.getpid(), 9)", "status -9"),
        ("", "gave no scores"),
    ],
)
def test_a_command_that_fails_says_how(tmp_path: Path, body: str, problem: str) -> None:
    with pytest.raises(EvaluatorFailed, match=problem):
        score(script(tmp_path, body))


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    name = script(
        tmp_path,
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(1000)",
    )
    evaluator: Any = made(name, timeout_s=PATIENT_S)

    evaluator.timeout_s = 3.0
    with pytest.raises(EvaluatorFailed, match="within 3 s and was killed"):
        evaluator(identity())
    for pid in map(int, note.read_text().split() if note.exists() else ()):
        until(lambda pid=pid: not _runs(pid), "it still runs")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_an_endpoint_gets_the_state_and_answers() -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        total = float(load(body)["weight"].sum())
        send(handler, 200, json.dumps({"accuracy": total / 4}).encode())

    with answering(answer) as url:
        assert score(url).metrics == {"accuracy": 0.5}


def test_an_endpoint_that_answers_without_end_is_left_at_its_time_limit() -> None:
    """A byte now and then kept every write waiting for ever: each is read in time."""
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not over.wait(0.05):
                handler.wfile.write(b" ")

    with answering(answer) as url:
        evaluator: Any = made(url, timeout_s=0.5)
        try:
            with pytest.raises(EvaluatorFailed, match=r"did not end its answer within 0\.5 s"):
                evaluator(identity())
        finally:
            over.set()


def test_an_endpoint_that_fails_says_how() -> None:
    ending = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.path == "/redirect":
            handler.send_response(302)
            handler.send_header("location", "/score")
            handler.end_headers()
        elif handler.path == "/slow":
            ending.wait()
        else:
            send(handler, 500 if handler.path == "/broken" else 200, b"no scores")

    with answering(answer) as url:
        base = url.removesuffix("/score")
        try:
            for path, problem in (
                ("/broken", "answered 500: no scores"),
                ("/redirect", "answered 302"),
                ("/score", "gave no scores"),
            ):
                with pytest.raises(EvaluatorFailed, match=problem):
                    score(base + path)
            with pytest.raises(EvaluatorFailed, match="no answer"):
                made(base + "/slow", timeout_s=0.2)(identity())
        finally:
            ending.set()
    with pytest.raises(EvaluatorFailed, match="no answer"):
        score(url)


# Time limits


def test_one_that_hangs_is_left_behind_and_no_second_is_started() -> None:
    go_on, calls = threading.Event(), []

    def hangs(module: nn.Module) -> dict[str, float]:
        calls.append(module)
        go_on.wait()
        return {"accuracy": 1.0}

    evaluator = Limited(hangs, 0.05)
    with pytest.raises(EvaluatorHangs, match=r"within 0\.05 s"):
        evaluator(identity())
    with pytest.raises(EvaluatorHangs, match="earlier state"):
        evaluator(identity())
    assert len(calls) == 1
    assert evaluator._hanging is not None
    go_on.set()
    evaluator._hanging[0].over.wait()
    evaluator.timeout_s = PATIENT_S
    assert evaluator(identity()).metrics == {"accuracy": 1.0}


def test_candidates_are_scored_on_one_thread_which_ends_with_the_evaluator() -> None:
    threads, scored = [], []

    def scores(module: nn.Module) -> dict[str, float]:
        threads.append(threading.current_thread())
        scored.append(weakref.ref(module))
        return {"accuracy": 1.0}

    evaluator = Limited(scores, PATIENT_S)
    for _ in range(3):
        evaluator(identity())
    assert len(set(threads)) == 1
    gc.collect()
    until(lambda: not any(module() for module in scored), "no candidate is kept")
    del evaluator
    threads[0].join()


def test_what_an_evaluator_raises_is_raised_where_it_was_asked() -> None:
    def raises(module: nn.Module) -> dict[str, float]:
        raise KeyError("data")

    def exits(module: nn.Module) -> dict[str, float]:
        raise SystemExit(3)

    with pytest.raises(KeyError, match="data"):
        Limited(raises, PATIENT_S)(identity())
    with pytest.raises(RuntimeError, match="SystemExit"):
        Limited(exits, PATIENT_S)(identity())
