"""Completions and chat on leased versions, through the openai client as it comes."""

import asyncio
import contextlib
import json
import socket
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from tests import patient
from tests.in_process import listening, openai_client
from tests.text_models import CONTEXT, llama, save_llama, tokenizer
from tests.waiting import PATIENCE_S, until
from weightledger import DynamicModelManager, DynamicUpdateConfig, IncrementalUpdateRequest
from weightledger.api.rest.text import schemas
from weightledger.api.rest.workers import Workers
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.engines.transformers.causal import CausalLM, _processors

HELLO = [{"role": "user", "content": "hello"}]
# More tokens than any test waits for.
LONG = 100_000


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared between threads of the server and the test's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamicModelManager]:
    folder = save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    with managing(TransformersEngine.load(folder), tmp_path_factory.mktemp("data")) as made:
        yield made


@contextlib.contextmanager
def managing(engine: TransformersEngine, folder: Path) -> Iterator[DynamicModelManager]:
    made = DynamicModelManager(engine, "tiny", config=DynamicUpdateConfig(backup_dir=folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(manager: DynamicModelManager) -> Iterator[str]:
    with listening(manager) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai_client(url) as client:
        yield client


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[DynamicModelManager]:
    """A model that ends only when it is told to."""
    model = llama(max_position_embeddings=2 * LONG, eos_token_id=None)
    with managing(TransformersEngine(model, tokenizer()), tmp_path) as made:
        yield made


def greedy(module: Any, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation, token by token and without a cache: an independent loop."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    return ids[len(prompt) :]


def text_of(ids: list[int]) -> str:
    return tokenizer().decode(ids, skip_special_tokens=True)


def change(manager: DynamicModelManager, number: int) -> None:
    """An update that changes every text."""
    data = torch.randn(384, 48, generator=torch.Generator().manual_seed(number))
    request = IncrementalUpdateRequest("lm_head.weight", data, 1.0, "additive")
    asyncio.run(manager.apply_incremental_update(request))


# What comes out


def test_a_completion_is_the_models_own_continuation(
    client: openai.OpenAI, manager: DynamicModelManager
) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="the quick", max_tokens=30, temperature=0
    )
    made = raw.parse()
    prompt = tokenizer()("the quick")["input_ids"]
    with manager.lease() as live:
        expected = greedy(live.module, prompt, 30)
        assert raw.headers["x-weights-seq"] == str(live.seq)
        assert raw.headers["x-weights-digest"] == live.digest.hex()
        assert made.system_fingerprint == f"seq-{live.seq}-{live.digest.hex()[:16]}"
    assert made.choices[0].text == text_of(expected)
    assert made.choices[0].finish_reason == "length"
    assert (made.object, made.model) == ("text_completion", "tiny")
    used = made.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (
        len(prompt),
        30,
        len(prompt) + 30,
    )


def test_a_chat_reply_follows_the_template(
    client: openai.OpenAI, manager: DynamicModelManager
) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    made = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        max_completion_tokens=20,
        temperature=0,
    )
    prompt = tokenizer()("<s><|user|>hello\n<|assistant|>")["input_ids"]
    with manager.lease() as live:
        expected = greedy(live.module, prompt, 20)
    assert made.choices[0].message.content == text_of(expected)
    assert made.choices[0].message.role == "assistant"
    assert made.usage.prompt_tokens == len(prompt)


def test_streams_say_the_same_in_pieces(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "max_tokens": 60, "temperature": 0.9, "top_p": 0.95, "seed": 11}
    whole = client.chat.completions.create(messages=HELLO, **asked)
    raw = client.chat.completions.with_raw_response.create(
        messages=HELLO, stream=True, stream_options={"include_usage": True}, **asked
    )
    chunks = list(raw.parse())
    assert raw.headers["x-weights-seq"].isdigit()
    assert len(raw.headers["x-weights-digest"]) == 64
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks[:-1]]
    assert "".join(texts) == whole.choices[0].message.content
    assert len([text for text in texts if text]) > 3
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}
    assert len({c.id for c in chunks}) == 1

    made = client.completions.create(prompt="hello", **asked)
    streamed = list(client.completions.create(prompt="hello", stream=True, **asked))
    assert "".join(c.choices[0].text for c in streamed) == made.choices[0].text
    assert all(chunk.usage is None for chunk in streamed)


def test_several_prompts_are_several_choices_of_one_state(client: openai.OpenAI) -> None:
    prompts = ["the quick", "every reply"]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    alone = [client.completions.create(prompt=p, **asked) for p in prompts]
    both = client.completions.create(prompt=prompts, **asked)
    ids = [tokenizer()(prompt)["input_ids"] for prompt in prompts]
    as_ids = client.completions.create(prompt=ids, **asked)
    expected = [one.choices[0].text for one in alone]
    assert [c.text for c in both.choices] == [c.text for c in as_ids.choices] == expected
    assert [c.index for c in both.choices] == [0, 1]
    assert both.usage.completion_tokens == 24
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(prompt=prompts, stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + choice.text
    assert [streamed[0], streamed[1]] == expected


def test_stop_strings_end_the_text_wherever_tokens_are_cut(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the", "max_tokens": 60, "temperature": 0}
    full = client.completions.create(**asked).choices[0].text
    # Each stop is five characters that no single token has; the text ends where it first occurs.
    for at in range(3, 40, 6):
        stop = full[at : at + 5]
        for given in (stop, ["never there", stop]):
            made = client.completions.create(stop=given, **asked)
            assert made.choices[0].text == full[: full.index(stop)]
            assert made.choices[0].finish_reason == "stop"
            assert made.usage.completion_tokens < 60
        streamed = client.completions.create(stop=stop, stream=True, **asked)
        assert "".join(c.choices[0].text for c in streamed) == full[: full.index(stop)]


def test_the_end_token_ends_the_text_and_is_not_shown(
    client: openai.OpenAI, manager: DynamicModelManager
) -> None:
    made = client.completions.create(
        model="tiny", prompt="hello", max_tokens=CONTEXT - 10, temperature=1, seed=4
    )
    assert made.choices[0].finish_reason == "stop"
    assert made.usage.completion_tokens < CONTEXT - 10
    assert "</s>" not in made.choices[0].text


def test_a_seed_gives_the_same_text_beside_other_generations(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        made = client.completions.create(
            model="tiny", prompt="the", max_tokens=40, temperature=1, seed=seed
        )
        return made.choices[0].text

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, [0, 1, 2, 3] * 4))
    assert together == alone * 4
    assert len(set(alone)) == 4


def test_sampling_follows_the_probabilities_of_the_model(manager: DynamicModelManager) -> None:
    """2000 first tokens at temperature 0.7: their shares against the softmax, and inside top_p."""
    generates = manager.engine.generates
    prompt = generates.tokens("the quick")
    with manager.lease() as live, torch.no_grad():
        logits = live.module(torch.tensor([prompt])).logits[0, -1].double() / 0.7
        shares = logits.softmax(-1)
        drawn = torch.zeros(384, dtype=torch.float64)
        nucleus = set()
        ordered = shares.sort(descending=True)
        kept = ordered.indices[: int((ordered.values.cumsum(-1) < 0.5).sum()) + 1]
        for seed in range(2000):
            scores = (logits * 0.7).float()[None]
            for process in _processors(Sampling(1, 0.7, seed=seed)):
                scores = process(None, scores)
            drawn[int(scores.argmax())] += 1
            if seed < 200:
                narrow = (logits * 0.7).float()[None]
                for process in _processors(Sampling(1, 0.7, 0.5, seed)):
                    narrow = process(None, narrow)
                nucleus.add(int(narrow.argmax()))
    expected = 2000 * shares
    often = expected >= 5
    chi2 = float(((drawn - expected) ** 2 / expected)[often].sum())
    # Mean and deviation of chi-squared with as many degrees of freedom; seeds are fixed.
    degrees = int(often.sum())
    assert degrees > 20
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5
    assert nucleus <= set(kept.tolist())
    assert len(nucleus) > 1


def test_without_a_number_of_tokens_completions_give_16_and_chat_fills_the_context(
    client: openai.OpenAI,
) -> None:
    made = client.completions.create(model="tiny", prompt="the", temperature=0)
    assert made.usage.completion_tokens == 16
    chat = client.chat.completions.create(model="tiny", messages=HELLO, seed=2)
    ended = chat.choices[0].finish_reason == "stop"
    assert ended or chat.usage.total_tokens == CONTEXT


# Further turns


def grown(client: openai.OpenAI, messages: list[Any]) -> list[Any]:
    """The conversation with the server's answer, which does not depend on how it was sent."""
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 5}
    reply = client.chat.completions.create(temperature=0, **asked).choices[0].message
    return [*messages, reply, {"role": "user", "content": "and then?"}]


def test_a_reply_goes_back_into_the_conversation_as_it_came(client: openai.OpenAI) -> None:
    first = grown(client, HELLO)
    second = grown(client, first)
    plain = [
        {"role": one.role, "content": one.content} if hasattr(one, "role") else one
        for one in second
    ]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    expected = client.chat.completions.create(messages=plain, **asked).choices[0].message.content
    assert (
        expected
        == client.chat.completions.create(messages=second, **asked).choices[0].message.content
    )
    # As the client's own helpers gather it, which take only replies that came to their end.
    short = {**asked, "stop": first[1].content[3]}
    with client.chat.completions.stream(messages=HELLO, **short) as stream:
        streamed = stream.get_final_completion().choices[0].message
    parsed = client.chat.completions.parse(messages=HELLO, **short).choices[0].message
    cut = [HELLO[0], {"role": "assistant", "content": streamed.content}, *second[2:]]
    after = client.chat.completions.create(messages=cut, **asked).choices[0].message.content
    for one in (streamed, parsed, streamed.model_dump(), parsed.model_dump()):
        made = client.chat.completions.create(messages=[HELLO[0], one, *second[2:]], **asked)
        assert made.choices[0].message.content == after
    streaming = client.chat.completions.create(messages=second, stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streaming) == expected


def test_what_a_message_leaves_empty_it_does_not_say(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    plain = [*HELLO, {"role": "assistant", "content": "hi you"}, *HELLO]
    expected = client.chat.completions.create(messages=plain, **asked).choices[0].message.content
    empty = dict.fromkeys(schemas._EMPTY_ONLY)
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}]
    for message in (
        {"content": "hi you", **empty},
        {"content": "hi you", "tool_calls": [], "annotations": [], "name": None},
        {"content": parts, **empty},
    ):
        sent = [*HELLO, {"role": "assistant", **message}, *HELLO]
        made = client.chat.completions.create(messages=sent, **asked)
        assert made.choices[0].message.content == expected


def test_every_field_of_a_clients_message_is_taken_or_refused_by_name() -> None:
    known = {"role", "content", "name", *schemas._EMPTY_ONLY}
    for kind in (
        openai.types.chat.ChatCompletionMessage,
        openai.types.chat.ParsedChatCompletionMessage,
    ):
        assert kind.model_fields.keys() <= known
    for kind in typing.get_args(openai.types.chat.ChatCompletionMessageParam):
        assert typing.get_type_hints(kind).keys() <= known, kind


# What is refused


def test_more_tokens_than_the_context_are_refused_by_number(client: openai.OpenAI) -> None:
    prompt = [5] * (CONTEXT - 4)
    fits = client.completions.create(model="tiny", prompt=prompt, max_tokens=4)
    assert fits.usage.prompt_tokens == CONTEXT - 4
    for sent in (
        {"prompt": prompt, "max_tokens": 5},
        {"prompt": [5] * CONTEXT},
        {"prompt": [5] * 999},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="tiny", **sent)
        assert refused.value.code == "context_length_exceeded"
        assert f"maximum context length is {CONTEXT} tokens" in str(refused.value)
    long = [{"role": "user", "content": "weights " * 600}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=long, stream=True)
    assert refused.value.code == "context_length_exceeded"


def test_an_unknown_model_is_404_in_openais_form(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.completions.create(model="gpt-4", prompt="x"),
        lambda: client.chat.completions.create(model="gpt-4", messages=HELLO, stream=True),
        lambda: client.models.retrieve("gpt-4"),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            ask()
        assert refused.value.code == "model_not_found"
        assert refused.value.param == "model"
        assert "tiny" in refused.value.message
    assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("route", "field", "value"),
    [
        ("completions", "n", 2),
        ("completions", "n", True),
        ("completions", "best_of", 3),
        ("completions", "echo", True),
        ("completions", "logprobs", 1),
        ("completions", "suffix", "."),
        ("completions", "presence_penalty", 0.5),
        ("completions", "frequency_penalty", -1),
        ("completions", "logit_bias", {"5": 1}),
        ("completions", "prompt", ""),
        ("completions", "prompt", []),
        ("completions", "prompt", [1, "a"]),
        ("completions", "prompt", [384]),
        ("completions", "prompt", [-1]),
        ("completions", "temperature", 3),
        ("completions", "temperature", "hot"),
        ("completions", "top_p", 0),
        ("completions", "max_tokens", 0),
        ("completions", "max_tokens", 2.5),
        ("completions", "seed", 1 << 64),
        ("completions", "stop", [1]),
        ("completions", "stream", 1),
        ("completions", "colour", "red"),
        ("chat/completions", "n", 2),
        ("chat/completions", "logprobs", True),
        ("chat/completions", "tools", [{"type": "function"}]),
        ("chat/completions", "response_format", {"type": "json_object"}),
        ("chat/completions", "messages", []),
        ("chat/completions", "messages", [{"role": "user"}]),
        ("chat/completions", "messages", [{"role": "wizard", "content": "x"}]),
        ("chat/completions", "messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("chat/completions", "messages", [{"role": "user", "content": None}]),
        ("chat/completions", "messages", [HELLO[0] | {"tool_calls": [{"id": "1"}]}]),
        ("chat/completions", "messages", [HELLO[0] | {"function_call": {"name": "f"}}]),
        ("chat/completions", "messages", [HELLO[0] | {"refusal": "I cannot"}]),
        ("chat/completions", "messages", [HELLO[0] | {"audio": {"id": "a"}}]),
        ("chat/completions", "messages", [HELLO[0] | {"mood": None}]),
    ],
)
def test_what_it_cannot_do_is_refused_by_field(
    url: str, route: str, field: str, value: object
) -> None:
    good = {"prompt": "x"} if route == "completions" else {"messages": HELLO}
    reply = patient.post(f"{url}/v1/{route}", json={"model": "tiny", **good, field: value})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").partition(".")[0] == field, error


def test_neutral_values_of_the_same_fields_are_taken(client: openai.OpenAI) -> None:
    made = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=1,
        n=1,
        best_of=1,
        echo=False,
        logprobs=None,
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        user="me",
    )
    assert made.usage.completion_tokens == 1


def test_a_text_model_has_no_embeddings_and_says_what_has(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny' is not a text encoder"):
        client.embeddings.create(model="tiny", input="x")


# Versions


def test_a_generation_ends_on_the_version_it_started_with(
    client: openai.OpenAI, manager: DynamicModelManager
) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "the quick",
        "max_tokens": 300,
        "temperature": 0.8,
        "seed": 1,
    }
    before = client.completions.create(**asked)
    raw = client.completions.with_raw_response.create(stream=True, **asked)
    stream = raw.parse()
    first = next(iter(stream))
    change(manager, 1)
    after = client.completions.with_raw_response.create(**asked)
    text = first.choices[0].text + "".join(c.choices[0].text for c in stream)
    assert text == before.choices[0].text
    assert after.parse().choices[0].text != text
    assert int(after.headers["x-weights-seq"]) > int(raw.headers["x-weights-seq"])
    until(lambda: manager.engine.held_versions() == 0)


_running: list[int] = []


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each generation that is running."""
    _running.clear()
    real = CausalLM.generate

    def generate(self: CausalLM, *args: Any) -> Any:
        _running.append(1)
        try:
            return real(self, *args)
        finally:
            _running.pop()

    monkeypatch.setattr(CausalLM, "generate", generate)
    return _running


def streaming(client: openai.OpenAI) -> Iterator[Any]:
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=LONG, stream=True)
    next(iter(stream))
    return stream


def test_hanging_up_stops_the_generation_and_drops_its_lease(
    endless: DynamicModelManager, counted: list[int]
) -> None:
    with listening(endless) as url, openai_client(url) as client:
        stream = streaming(client)
        change(endless, 1)
        assert endless.engine.held_versions() == 1
        stream.close()
        until(lambda: endless.engine.held_versions() == 0)
        assert not counted

        body = json.dumps({"prompt": "x", "max_tokens": LONG}).encode()
        address = url.removeprefix("http://")
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as plain:
            plain.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: "
                + address.encode()
                + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            until(lambda: counted)
            change(endless, 2)
            assert endless.engine.held_versions() == 1
        until(lambda: endless.engine.held_versions() == 0)
        assert not counted


def test_beyond_threads_and_queue_requests_are_503_and_those_who_leave_make_room(
    endless: DynamicModelManager, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted: list[Future[Any]] = []
    submit = Workers.submit

    def counting(self: Workers, work: Callable[[], Any]) -> Future[Any]:
        accepted.append(submit(self, work))
        return accepted[-1]

    monkeypatch.setattr(Workers, "submit", counting)
    limits = {"inference_threads": 1, "inference_queue": 1}
    short = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    with listening(endless, **limits) as url, openai_client(url) as client:
        running = streaming(client)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/v1/completions", json=short, timeout=0.5)
        until(lambda: len(accepted) == 2 and accepted[1].cancelled())

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.completions.create, **short)
            until(lambda: len(accepted) == 3)
            refused = patient.post(f"{url}/v1/completions", json=short)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            error = refused.json()["error"]
            assert error["code"] == "unavailable"
            assert "1 inferences are running and 1 are waiting" in error["message"]
            # The event loop is free all the while.
            assert patient.get(f"{url}/readyz").status_code == 200
            assert len(counted) == 1
            running.close()
            assert waiting.result(PATIENCE_S).usage.completion_tokens == 2


def test_a_fault_inside_a_stream_is_told_in_the_stream(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, manager: DynamicModelManager
) -> None:
    def fail(self: CausalLM, module: Any, prompt: Any, sampling: Any, emit: Callable[[str], bool]):
        emit("so far")
        raise RuntimeError("the model broke")

    monkeypatch.setattr(CausalLM, "generate", fail)
    stream = client.completions.create(model="tiny", prompt="x", stream=True)
    assert next(iter(stream)).choices[0].text == "so far"
    with pytest.raises(openai.APIError, match="internal error: RuntimeError"):
        list(stream)
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="tiny", prompt="x")
    assert failed.value.status_code == 500
