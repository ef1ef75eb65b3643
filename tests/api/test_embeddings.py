"""Embeddings of the real MiniLM through the openai client as it comes."""

import base64
from collections.abc import Iterator

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests import patient
from tests.in_process import listening, openai_client
from tests.text_models import MINILM
from weightledger import DynamicModelManager, DynamicUpdateConfig
from weightledger.ledger.engines.transformers import TransformersEngine

TEXTS = ["a quick fox", "Weights change while they are served, and every reply says which."]


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=tmp_path_factory.mktemp("data"))
    made = DynamicModelManager(TransformersEngine.load(MINILM), "minilm", config=config)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(manager: DynamicModelManager) -> Iterator[openai.OpenAI]:
    with listening(manager) as url, openai_client(url) as client:
        yield client


def expected(texts: list[str]) -> torch.Tensor:
    """The mean over tokens that are no padding, scaled to length 1, as the folder's files say."""
    model = AutoModel.from_pretrained(MINILM).eval()
    batch = AutoTokenizer.from_pretrained(MINILM)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        vectors = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (vectors * mask).sum(1) / mask.sum(1)
    return mean / mean.norm(dim=1, keepdim=True)


def test_embeddings_are_the_models_own(client: openai.OpenAI, manager: DynamicModelManager) -> None:
    raw = client.embeddings.with_raw_response.create(model="minilm", input=TEXTS)
    made = raw.parse()
    got = torch.tensor([item.embedding for item in made.data])
    assert torch.allclose(got, expected(TEXTS), atol=1e-6)
    assert [item.index for item in made.data] == [0, 1]
    # [CLS] a quick fox [SEP] are five.
    assert made.usage.prompt_tokens == made.usage.total_tokens == 5 + 15
    with manager.lease() as live:
        assert raw.headers["x-weights-seq"] == str(live.seq)
        assert raw.headers["x-weights-digest"] == live.digest.hex()


def test_base64_holds_the_same_bits_as_numbers(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="float")
    packed = client.embeddings.create(model="minilm", input=TEXTS[0], encoding_format="base64")
    data = base64.b64decode(packed.data[0].embedding)
    assert np.frombuffer(data, "<f4").tolist() == numbers.data[0].embedding
    assert len(data) == 4 * 384


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI) -> None:
    ids = AutoTokenizer.from_pretrained(MINILM)(TEXTS)["input_ids"]
    by_text = client.embeddings.create(model="minilm", input=TEXTS)
    by_ids = client.embeddings.create(model="minilm", input=ids)
    one = client.embeddings.create(model="minilm", input=ids[0])
    alone = client.embeddings.create(model="minilm", input=TEXTS[0])
    assert [item.embedding for item in by_ids.data] == [item.embedding for item in by_text.data]
    assert one.data[0].embedding == alone.data[0].embedding


def test_a_long_list_keeps_its_order(client: openai.OpenAI) -> None:
    texts = [f"text number {n}" for n in range(70)]
    made = client.embeddings.create(model="minilm", input=texts)
    got = torch.tensor([item.embedding for item in made.data])
    assert torch.allclose(got, expected(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("sent", "param", "says"),
    [
        ({"dimensions": 100}, "dimensions", "must be 384"),
        ({"input": ""}, "input", "none of them empty"),
        ({"input": []}, "input", "none of them empty"),
        ({"input": ["a", ""]}, "input", "none of them empty"),
        ({"input": [["a"]]}, "input", "list of token ids"),
        ({"input": [True]}, "input", "list of token ids"),
        ({"input": [40000]}, "input", "from 0 to 30521"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 texts"),
        ({"input": "fox " * 255}, "input", "maximum context length is 256 tokens"),
        ({"input": ["a", "fox " * 255]}, "input.1", "maximum context length is 256 tokens"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"colour": "red"}, "colour", "not permitted"),
    ],
)
def test_a_wrong_request_is_refused_by_field(
    client: openai.OpenAI, sent: dict[str, object], param: str, says: str
) -> None:
    reply = patient.post(f"{client.base_url}embeddings", json={"input": "a fox", **sent})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_the_longest_text_and_its_own_dimensions_are_taken(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="minilm", input="fox " * 254, dimensions=384)
    assert made.usage.prompt_tokens == 256


def test_an_encoder_generates_no_text_and_says_what_does(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.completions.create(model="minilm", prompt="x"),
        lambda: client.chat.completions.create(
            model="minilm", messages=[{"role": "user", "content": "x"}]
        ),
    ):
        with pytest.raises(openai.NotFoundError, match="'minilm' is not a causal language model"):
            ask()
    with pytest.raises(openai.NotFoundError, match="'gpt' not found; served here: minilm"):
        client.embeddings.create(model="gpt", input="x")
