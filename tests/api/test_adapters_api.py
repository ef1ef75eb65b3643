"""Adapters over HTTP: vLLM's routes, the model list, and generations through an adapter."""

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from tests import patient
from tests.api.test_generation import greedy, managing, text_of
from tests.in_process import listening, openai_client
from tests.lora import change_config, peft_model, save_adapter
from tests.serving import Server
from tests.text_models import llama, save_llama, tokenizer
from weightledger import Ledger
from weightledger.ledger.audit.verify import verify

PROMPT = "the quick"
TOKENS = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared between threads of the server and the test's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(root / name, seed) for seed, name in enumerate("ab", 1)}


@pytest.fixture(scope="module")
def texts(folders: dict[str, Path]) -> dict[str, str]:
    """What the base and each adapter say, by peft itself."""
    ids = tokenizer()(PROMPT)["input_ids"]
    said = {"base": text_of(greedy(llama(), ids, TOKENS))}
    for name, folder in folders.items():
        said[name] = text_of(greedy(peft_model(folder), ids, TOKENS))
    assert len(set(said.values())) == 3
    return said


@contextlib.contextmanager
def llama_served(folder: Path) -> Iterator[str]:
    from weightledger.ledger.engines.transformers import TransformersEngine

    engine = TransformersEngine(llama(), tokenizer())
    with managing(engine, folder) as manager, listening(manager) as url:
        yield url


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with llama_served(tmp_path / "data") as url:
        yield url


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server for what it refuses, which is to leave nothing behind."""
    with (
        llama_served(tmp_path_factory.mktemp("unchanged") / "data") as url,
        patient.Client(base_url=url) as client,
    ):
        yield client


def assert_unchanged(http: httpx2.Client) -> None:
    assert http.get("/v1/models/updates").json()["data"][0]["seq"] == 0
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai_client(url) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    with patient.Client(base_url=url) as client:
        yield client


def load(http: httpx2.Client, name: str, path: Path, **more: Any) -> httpx2.Response:
    body = {"lora_name": name, "lora_path": str(path), **more}
    return http.post("/v1/load_lora_adapter", json=body)


def say(client: openai.OpenAI, model: str) -> str:
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert made.model == model
    return str(made.choices[0].text)


def error_of(reply: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_an_adapter_is_loaded_listed_chosen_and_unloaded(
    http: httpx2.Client, client: openai.OpenAI, folders: dict[str, Path], texts: dict[str, str]
) -> None:
    done = load(http, "style", folders["a"])
    assert (done.status_code, done.text) == (
        200,
        "Success: LoRA adapter 'style' added successfully.",
    )
    assert done.headers["content-type"].startswith("text/plain")
    assert done.headers["etag"] == '"1"'
    assert say(client, "style") == texts["a"]
    assert say(client, "tiny") == texts["base"]
    base, style = client.models.list().data
    assert (base.id, style.id) == ("tiny", "style")
    assert style.to_dict()["parent"] == "tiny"
    assert style.to_dict()["root"] == str(folders["a"])
    assert client.models.retrieve("style").id == "style"
    assert not hasattr(client.models.retrieve("tiny"), "parent")

    again = load(http, "style", folders["b"])
    assert again.status_code == 400
    assert error_of(again)["message"] == (
        "The lora adapter 'style' has already been loaded. If you want to load the adapter in "
        "place, set 'load_inplace' to True."
    )
    assert load(http, "style", folders["b"], load_inplace=True).status_code == 200
    assert say(client, "style") == texts["b"]

    body = {"lora_name": "style"}
    gone = http.post("/v1/unload_lora_adapter", json=body)
    assert gone.text == "Success: LoRA adapter 'style' removed successfully."
    with pytest.raises(openai.NotFoundError) as unknown:
        say(client, "style")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    missing = http.post("/v1/unload_lora_adapter", json=body)
    assert missing.status_code == 404
    assert error_of(missing)["message"] == "The lora adapter 'style' cannot be found."


def test_replies_name_the_state_of_base_and_adapter(
    http: httpx2.Client, client: openai.OpenAI, folders: dict[str, Path]
) -> None:
    done = load(http, "style", folders["a"])
    for model in ("style", "tiny"):
        raw = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert raw.headers["x-weights-seq"] == done.headers["x-weights-seq"] == "1"
        assert raw.headers["x-weights-digest"] == done.headers["x-weights-digest"]
    assert (
        http.post("/v1/models/verify", json={}).json()["digest"]
        == (done.headers["x-weights-digest"])
    )


def test_rollback_restores_adapters_and_says_where_they_came_from(
    http: httpx2.Client, client: openai.OpenAI, folders: dict[str, Path], texts: dict[str, str]
) -> None:
    load(http, "style", folders["a"])
    named = http.post("/v1/models/create_version", json={"description": "a"}).json()["data"]
    load(http, "style", folders["b"], load_inplace=True)
    load(http, "more", folders["a"])
    back = {"version_id": named["version_id"]}
    assert http.post("/v1/models/rollback", json=back).json()["success"] is True
    assert say(client, "style") == texts["a"]
    listed = http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "style"]
    assert listed[1]["root"] == str(folders["a"])
    kinds = [item["kind"] for item in http.get("/v1/models/updates").json()["data"]]
    assert kinds[:3] == ["rolled_back", "adapter_loaded", "adapter_loaded"]


def test_merging_and_rolling_back(
    http: httpx2.Client, client: openai.OpenAI, folders: dict[str, Path], texts: dict[str, str]
) -> None:
    load(http, "style", folders["a"])
    merged = http.post("/v1/models/merge_adapter", json={"lora_name": "style"})
    assert merged.status_code == 200, merged.text
    assert merged.json()["message"] == "Successfully merged adapter style"
    assert merged.json()["data"]["update_count"] == 1
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert say(client, "tiny") != texts["base"]
    assert http.post("/v1/models/rollback", json={"version_id": "head~1"}).is_success
    assert say(client, "tiny") == texts["base"]
    assert say(client, "style") == texts["a"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "lora_name"),
        ({"lora_name": "x"}, 400, "lora_path"),
        ({"lora_name": "", "lora_path": "y"}, 400, "must be provided"),
        ({"lora_name": "x", "lora_path": ""}, 400, "must be provided"),
        ({"lora_name": "x", "lora_path": "no/such"}, 404, "No adapter found for no/such"),
        ({"lora_name": "x", "lora_path": "a\x00b"}, 404, "lora_path"),
        ({"lora_name": "tiny", "lora_path": "y"}, 400, "the name of the model itself"),
        ({"lora_name": "versions", "lora_path": "y"}, 400, "reserved"),
        ({"lora_name": "a/b", "lora_path": "y"}, 400, "no slash"),
        ({"lora_name": 5, "lora_path": "y"}, 400, "lora_name"),
        ({"lora_name": "x", "lora_path": "y", "load_inplace": 1}, 400, "load_inplace"),
        ({"lora_name": "x", "lora_path": "y", "other": 1}, 400, "other"),
    ],
)
def test_bad_loads(unchanged: httpx2.Client, body: dict[str, Any], status: int, says: str) -> None:
    reply = unchanged.post("/v1/load_lora_adapter", json=body)
    assert reply.status_code == status, reply.text
    assert says in json.dumps(error_of(reply))
    assert_unchanged(unchanged)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"r": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ("[" * 3000, "nested too deeply"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "rank_pattern that cannot be read"),
        ({"rank_pattern": {"(" * 900 + ")" * 900: 4}}, "rank_pattern"),
        ({"target_modules": r"((\w|\.)+)+!"}, "name other modules"),
        ({"exclude_modules": r"(?=((\w|\.)+)+!)"}, "cannot be matched in linear time"),
    ],
    ids=range(6),
)
def test_a_config_made_to_harm_is_a_bad_request(
    unchanged: httpx2.Client, folders: dict[str, Path], tmp_path: Path, config: Any, says: str
) -> None:
    folder = Path(shutil.copytree(folders["a"], tmp_path / "folder"))
    if isinstance(config, str):
        (folder / "adapter_config.json").write_text(config)
    else:
        change_config(folder, **config)
    reply = load(unchanged, "style", folder)
    assert reply.status_code == 400, reply.text
    assert says in error_of(reply)["message"]
    assert_unchanged(unchanged)


def test_adapters_are_reserved_every_static_name(unchanged: httpx2.Client) -> None:
    from weightledger.api.rest.routes.adapters import RESERVED

    paths = unchanged.get("/openapi.json").json()["paths"]
    static = {
        path.removeprefix("/v1/models/").partition("/")[0]
        for path in paths
        if path.startswith("/v1/models/")
    }
    assert {name for name in static if "{" not in name} <= RESERVED


@pytest.mark.parametrize("switch", ["allow_runtime_updating", "aphrodite_allows"])
def test_the_switches_refuse(tmp_path: Path, folders: dict[str, Path], switch: str) -> None:
    from weightledger.ledger.engines.transformers import TransformersEngine

    engine = TransformersEngine(llama(), tokenizer())
    with (
        managing(engine, tmp_path / "data") as manager,
        listening(manager, **{switch: False}) as url,
        patient.Client(base_url=url) as http,
    ):
        asked = {"lora_name": "style"}
        replies = [
            load(http, "style", folders["a"]),
            http.post("/v1/unload_lora_adapter", json=asked),
            http.post("/v1/models/merge_adapter", json=asked),
        ]
    assert [reply.status_code for reply in replies] == [403] * 3


# While others read


def test_reloads_under_streams_are_never_mixed(
    url: str, http: httpx2.Client, folders: dict[str, Path]
) -> None:
    """Eight clients stream while adapter and base change: each text is that of its one state."""
    ids = tokenizer()(PROMPT)["input_ids"]
    expected = {}
    for name, folder in folders.items():
        for shifted in (False, True):
            base = llama()
            if shifted:
                base.lm_head.weight.data[7] += 1
            model = peft_model(folder, base)
            expected[name, shifted] = text_of(greedy(model, ids, TOKENS))
    assert len(set(expected.values())) == 4
    states: dict[str, str] = {}
    over = threading.Event()
    load(http, "style", folders["a"])

    def note(name: str, shifted: bool) -> None:
        seq = http.get("/v1/models/status").headers["etag"].strip('"')
        states[seq] = expected[name, shifted]

    note("a", False)

    def stream(_: int) -> list[tuple[str, str]]:
        seen = []
        with openai_client(url) as client:
            while not over.is_set() or not seen:
                raw = client.completions.with_raw_response.create(
                    model="style", prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True
                )
                text = "".join(chunk.choices[0].text for chunk in raw.parse())
                seen.append((raw.headers["x-weights-seq"], text))
        return seen

    shift = [0.0] * (384 * 48)
    shift[7 * 48 : 8 * 48] = [1.0] * 48
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, number) for number in range(8)]
        try:
            for _ in range(3):
                load(http, "style", folders["b"], load_inplace=True)
                note("b", False)
                body = {"parameter_name": "lm_head.weight", "update_data": shift}
                sent = http.post(
                    "/v1/models/incremental_update", json={**body, "learning_rate": 1.0}
                )
                assert sent.json()["success"], sent.text
                note("b", True)
                load(http, "style", folders["a"], load_inplace=True)
                note("a", True)
                http.post("/v1/models/rollback", json={"version_id": "seq:1"})
                note("a", False)
        finally:
            over.set()
        seen = [one for future in streams for one in future.result()]
    assert len({seq for seq, _ in seen}) > 3
    assert [text for _, text in seen] == [states[seq] for seq, _ in seen]


def test_a_stream_goes_on_through_an_adapter_that_is_unloaded(
    url: str, http: httpx2.Client, folders: dict[str, Path], texts: dict[str, str]
) -> None:
    load(http, "style", folders["a"])
    with openai_client(url) as client:
        stream = client.completions.create(
            model="style", prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True
        )
        text = next(stream).choices[0].text
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "style"}).is_success
        text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == texts["a"]


# A real process


def test_kill_and_restart_bring_adapters_back(
    tmp_path: Path, folders: dict[str, Path], texts: dict[str, str]
) -> None:
    model = save_llama(tmp_path / "tiny-llama")
    env = {"OMP_NUM_THREADS": "1"}
    server = Server(tmp_path / "data", "--model", str(model), env=env).start()
    try:
        with server.client() as http:
            assert load(http, "style", folders["b"]).is_success
            done = load(http, "style", folders["a"], load_inplace=True)
        server.kill()
        server.start()
        with server.client() as http, openai_client(server.url) as client:
            assert say(client, "style") == texts["a"]
            assert http.get("/readyz").json()["digest"] == done.headers["x-weights-digest"]
            assert http.post("/v1/models/verify", json={}).status_code == 200
        server.kill()
    finally:
        server.stop()
    with Ledger.open(f"sqlite:///{tmp_path / 'data' / 'ledger.db'}", upgrade=False) as ledger:
        assert verify(ledger.history("tiny-llama")).problem is None
