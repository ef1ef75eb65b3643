"""Text models under updates, end to end: real server, real openai client, every reply checked.

MiniLM is the real encoder; the chat model is small and random.
"""

import base64
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from tests import patient
from tests.in_process import listening, openai_client
from tests.text_models import MINILM, save_llama
from weightledger import DynamicModelManager, DynamicUpdateConfig
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine

WORDS = "embeddings.word_embeddings.weight"
TEXTS = ["the weights changed", "and changed back again, to the last bit"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread: on several, sums may be cut differently from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def managing(model: Path, data: Path, name: str) -> DynamicModelManager:
    engine = TransformersEngine.load(model)
    return DynamicModelManager(engine, name, config=DynamicUpdateConfig(backup_dir=data))


@pytest.fixture
def minilm(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = managing(MINILM, tmp_path / "minilm", "minilm")
    yield made
    made.close()


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[DynamicModelManager]:
    made = managing(save_llama(tmp_path / "llama"), tmp_path / "chat", "chat")
    yield made
    made.close()


def embed(client: openai.OpenAI) -> tuple[str, bytes]:
    """The seq a reply names, and the bits of its vectors."""
    raw = client.embeddings.with_raw_response.create(
        model="minilm", input=TEXTS, encoding_format="base64"
    )
    vectors = [base64.b64decode(item.embedding) for item in raw.parse().data]
    return raw.headers["x-weights-seq"], b"".join(vectors)


def post(url: str, route: str, **body: Any) -> dict[str, Any]:
    reply = patient.post(f"{url}/v1/models/{route}", json=body)
    assert reply.status_code == 200, reply.text
    data: dict[str, Any] = reply.json()["data"]
    return data


def test_word_embeddings_change_over_rest_and_come_back_bit_for_bit(
    minilm: DynamicModelManager,
) -> None:
    with listening(minilm) as url, openai_client(url) as client:
        version = post(url, "create_version", description="as released")["version_id"]
        _, released = embed(client)
        change = {"update_data": 0.5, "learning_rate": 0.1, "update_type": "multiplicative"}
        post(url, "incremental_update", parameter_name=WORDS, **change)
        seq, changed = embed(client)
        assert changed != released
        post(url, "rollback", version_id=version)
        back_seq, back = embed(client)
        assert back == released
        assert int(back_seq) > int(seq)


class Clients:
    """Threads that ask until they are told to stop, keeping what they got."""

    def __init__(self, asks: list[Callable[[], Any]]) -> None:
        self.replies: list[Any] = []
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(ask,)) for ask in asks]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _go(self, ask: Callable[[], Any]) -> None:
        try:
            while not self._stop.is_set():
                self.replies.append(ask())
        except BaseException as error:
            self.failures.append(error)
            raise


def stream_of_changes(url: str, names: list[str], count: int, rng: random.Random) -> None:
    """Updates of one tensor each, with a rollback now and then."""
    for n in range(count):
        if n % 10 == 9:
            post(url, "rollback", version_id=f"head~{rng.randint(1, 4)}")
            continue
        post(
            url,
            "incremental_update",
            parameter_name=rng.choice(names),
            update_data=rng.uniform(0.1, 1),
            learning_rate=0.5,
            update_type="multiplicative",
        )


def test_eight_clients_get_whole_states_while_updates_stream(
    minilm: DynamicModelManager, chat: DynamicModelManager
) -> None:
    """Four embed, four stream chats; each reply is computed again from the state it names."""
    seeds = itertools.count()
    with (
        listening(minilm) as embed_url,
        listening(chat) as chat_url,
        openai_client(embed_url) as embedder,
        openai_client(chat_url) as talker,
    ):

        def talk() -> tuple[str, int, str]:
            seed = next(seeds)
            raw = talker.chat.completions.with_raw_response.create(
                model="chat",
                messages=[{"role": "user", "content": "what changed?"}],
                max_tokens=40,
                seed=seed,
                stream=True,
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse())
            return raw.headers["x-weights-seq"], seed, text

        with (
            Clients([lambda: embed(embedder)] * 4) as embedding,
            Clients([talk] * 4) as talking,
        ):
            writers = [
                threading.Thread(
                    target=stream_of_changes,
                    args=(url, [n for n in manager.log.specs if part in n], 20, random.Random(5)),
                )
                for url, manager, part in (
                    (embed_url, minilm, "LayerNorm.weight"),
                    (chat_url, chat, "layernorm.weight"),
                )
            ]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
    assert not embedding.failures
    assert not talking.failures
    assert minilm.log.live.head.seq >= 20
    assert chat.log.live.head.seq >= 20

    embeds, fresh = minilm.engine.embeds, TransformersEngine.load(MINILM)
    tokens = [embeds.tokens(text) for text in TEXTS]
    expected: dict[str, bytes] = {}
    for seq in {seq for seq, _ in embedding.replies}:
        state = minilm.log.state(f"seq:{seq}")
        with torch.no_grad():
            module = fresh.prepare(state).module
        expected[seq] = embeds.embed(module, tokens).numpy().tobytes()
    assert len(set(expected.values())) > 3
    assert all(got == expected[seq] for seq, got in embedding.replies)

    generates = chat.engine.generates
    prompt = generates.chat_tokens([{"role": "user", "content": "what changed?"}])
    modules: dict[str, torch.nn.Module] = {}
    base = TransformersEngine.load(Path(chat.engine.current().module.name_or_path))
    for seq, seed, text in talking.replies:
        if seq not in modules:
            modules[seq] = base.prepare(chat.log.state(f"seq:{seq}")).module
        pieces: list[str] = []
        sampling = Sampling(40, 1.0, seed=seed)
        generates.generate(
            modules[seq], prompt, sampling, lambda piece, pieces=pieces: not pieces.append(piece)
        )
        assert text == "".join(pieces)
    assert len(modules) > 3
