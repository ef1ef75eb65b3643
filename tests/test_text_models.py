"""`--model FOLDER`: what is served, what is refused at start, and what is not even imported."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests import patient
from tests.in_process import openai_client
from tests.serving import Server, serving
from tests.text_models import MINILM, llama, save_llama, tokenizer
from weightledger.api.server.loading import load
from weightledger.ledger.engines.transformers import TransformersEngine, sentences
from weightledger.ledger.engines.transformers.encoder import Pooling, pool
from weightledger.ledger.engines.transformers.sentences import Sentences
from weightledger.ledger.engines.transformers.tokens import UNLIMITED
from weightledger.ledger.errors import ContextTooLong, InvalidRequest

Roberta = (RobertaConfig, RobertaModel)
XLMRoberta = (XLMRobertaConfig, XLMRobertaModel)
MPNet = (MPNetConfig, MPNetModel)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_a_folder_is_served_by_the_command(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "endless", max_position_embeddings=200_000, eos_token_id=None)
    options = ("--model", str(model))
    with serving(tmp_path / "data", *options) as server, openai_client(server.url) as client:
        assert [model.id for model in client.models.list()] == ["endless"]
        # A plain call gives logits, and no cache, which JSON could not hold.
        body = {"inputs": [[0, 5, 6]], "dtype": "int64"}
        reply = patient.post(f"{server.url}/invocations", json=body)
        assert reply.status_code == 200, reply.text
        assert list(reply.json()["predictions"]) == ["logits"]
        update = {"parameter_name": "model.norm.weight", "update_data": 1.0}
        assert patient.post(f"{server.url}/v1/models/incremental_update", json=update).is_success
        asked = {"model": "endless", "prompt": "x", "max_tokens": 100_000}
        stream = client.completions.create(stream=True, **asked)
        next(iter(stream))
        # Told to stop, it does not wait for the end of a generation.
        server.stop()
        stream.close()
    # Started again, it takes up its log.
    with serving(tmp_path / "data", *options) as server:
        assert patient.get(f"{server.url}/v1/models/status").json()["total_updates"] == 1


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")


def missing_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def other_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def configured(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))

    return change


CODE = """
from pathlib import Path
Path({marker!r}).touch()
"""


def own_code(folder: Path) -> None:
    (folder / "modeling_own.py").write_text(CODE.format(marker=str(folder / "ran")))
    configured(
        model_type="own",
        auto_map={"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"},
    )(folder)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (no_config, "has no config.json"),
        (pickled, "has no *.safetensors file; pickled weights"),
        (broken_weights, "cannot be loaded"),
        (missing_weights, "lacks weights that the model needs: model.norm.weight"),
        (other_shape, "model.norm.weight"),
        (no_tokenizer, "cannot be loaded"),
        (configured(architectures=["ViTForImageClassification"]), "expected a causal language"),
        (configured(architectures=None), "no named architecture"),
        (configured(model_type="nonsense"), "cannot be loaded"),
        (own_code, "cannot be loaded"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_cannot_be_served_is_refused_by_what_is_wrong(
    llama_folder: Path, tmp_path: Path, break_it: Callable[[Path], None], says: str
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "folder"))
    break_it(folder)
    with pytest.raises(InvalidRequest) as refused:
        load(str(folder), tmp_path)
    assert says in str(refused.value)
    assert str(folder) in str(refused.value)
    assert not (folder / "ran").exists()


def test_the_command_says_what_model_may_be(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--model", "no/such/folder")
    said = server.refuse_to_start()
    assert "a Hugging Face folder (config.json, *.safetensors" in said
    assert "Traceback" not in said


# Pooling


def minilm_with(folder: Path, *modules: tuple[str, dict[str, object] | None]) -> Path:
    """MiniLM's files with another modules.json."""
    shutil.copytree(MINILM, folder, symlinks=True)
    listed = []
    for number, (kind, config) in enumerate(modules):
        path = f"{number}_{kind}" if number else ""
        listed.append({"idx": number, "path": path, "type": f"sentence_transformers.models.{kind}"})
        if config is not None:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def test_pooling_is_what_the_folder_says(tmp_path: Path) -> None:
    read = sentences.read
    assert read(MINILM) == Sentences(Pooling("mean", normalize=True), 256)
    cls = minilm_with(
        tmp_path / "cls",
        ("Transformer", None),
        ("Pooling", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
    )
    assert read(cls).pooling == Pooling("cls", normalize=False)
    named = minilm_with(
        tmp_path / "named", ("Transformer", None), ("Pooling", {"pooling_mode": "lasttoken"})
    )
    assert read(named).pooling == Pooling("lasttoken", normalize=False)
    (named / "modules.json").unlink()
    (named / "sentence_bert_config.json").unlink()
    assert read(named).pooling == Pooling("mean", normalize=False)
    assert read(named).max_tokens is None


def test_pooled_vectors_leave_padding_out() -> None:
    vectors = torch.tensor([[[1.0, 4.0], [3.0, -2.0], [100.0, 100.0]], [[2.0, 0.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for mode, first in (
        ("mean", [2.0, 1.0]),
        ("cls", [1.0, 4.0]),
        ("lasttoken", [3.0, -2.0]),
        ("max", [3.0, 4.0]),
    ):
        got = pool(vectors, mask, Pooling(mode))
        assert got.tolist() == [first, [2.0, 0.0]]
    scaled = pool(vectors, mask, Pooling("max", normalize=True))
    assert torch.allclose(scaled, torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


def test_an_encoder_without_pooling_files_is_served(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=384, num_hidden_layers=1, **shape)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    engine = TransformersEngine.load(tmp_path)
    assert engine.generates is None
    assert engine.embeds is not None
    assert (engine.embeds.dimensions, engine.embeds.max_tokens) == (16, 512)


@pytest.mark.parametrize(("family", "unused"), [(Roberta, 2), (XLMRoberta, 2), (MPNet, 2)])
def test_positions_that_a_family_leaves_unused_are_no_part_of_its_limit(
    family: tuple[Any, Any], unused: int
) -> None:
    """514 rows of positions are for 512 tokens: the first are for padding."""
    configured, encoder = family
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = configured(
        vocab_size=384, num_hidden_layers=1, max_position_embeddings=514, pad_token_id=1, **shape
    )
    model = encoder(config).eval()
    engine = TransformersEngine(model, tokenizer())
    assert engine.embeds.max_tokens == 514 - unused
    longest = [5 + n % 300 for n in range(512)]
    with pytest.raises(ContextTooLong, match="maximum context length is 512 tokens"):
        engine.embeds.tokens([*longest, 5])
    got = engine.embeds.embed(engine.prepare({}).module, [engine.embeds.tokens(longest)])
    with torch.no_grad():
        expected = model(torch.tensor([longest])).last_hidden_state.mean(1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_chat_template_that_trips_over_a_message_refuses_it() -> None:
    tripping = tokenizer()
    tripping.chat_template = "{{ messages[0].content + 1 }}"
    engine = TransformersEngine(llama(), tripping)
    with pytest.raises(InvalidRequest, match="the chat template refused the messages"):
        engine.generates.chat_tokens([{"role": "user", "content": "hello"}])


def test_a_model_without_a_limit_of_its_own_gets_one() -> None:
    shape = {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    engine = TransformersEngine(BloomForCausalLM(BloomConfig(vocab_size=384, **shape)), tokenizer())
    assert engine.generates.max_tokens == UNLIMITED


def test_tokens_that_the_tokenizer_has_and_the_model_lacks_are_refused() -> None:
    engine = TransformersEngine(llama(vocab_size=300), tokenizer())
    assert engine.generates.tokens([299]) == [299]
    with pytest.raises(InvalidRequest, match="from 0 to 299, got 3"):
        engine.generates.tokens("weights change under it, and every reply names the state")


# Without the extra

UNIMPORTED = """
import sys
import weightledger.ledger.manager, weightledger.api.server.app
import weightledger.api.server.serve, weightledger.api.cli
from weightledger.api.server.loading import load
from pathlib import Path
load("digits", Path(sys.argv[1]))
found = {"transformers", "tokenizers", "peft"} & set(sys.modules)
assert not found, found
"""

ABSENT = """
import sys
sys.modules["transformers"] = None
from weightledger.api.server.loading import load
from weightledger.ledger.errors import InvalidRequest
from pathlib import Path
try:
    load(sys.argv[1], Path("."))
except InvalidRequest as error:
    print(error)
"""


def run(code: str, argument: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_is_not_imported_unless_a_folder_is_served(tmp_path: Path) -> None:
    run(UNIMPORTED, tmp_path)


def test_without_transformers_a_folder_is_refused_with_how_to_get_it(tmp_path: Path) -> None:
    assert "pip install 'weightledger[transformers]'" in run(ABSENT, tmp_path)
