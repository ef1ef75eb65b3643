"""Folders of sentence-transformers: every file is honoured as that library does, or refused."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertForMaskedLM, BertModel, Qwen3Config, Qwen3ForCausalLM

from tests.text_models import tokenizer
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import InvalidRequest

TEXTS = ["The quick brown Fox", "über dem Hund ", "weights change under it, and every reply"]
PACKAGE = "sentence_transformers.models"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bert(kind: Any = BertModel) -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return kind(BertConfig(vocab_size=384, num_hidden_layers=2, pad_token_id=2, **shape))


def qwen3() -> Any:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}
    more = {"num_key_value_heads": 1, "num_hidden_layers": 2, "tie_word_embeddings": True}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Qwen3ForCausalLM(Qwen3Config(vocab_size=384, pad_token_id=2, **shape, **more))


def save(
    folder: Path,
    *,
    model: Any = None,
    pooling: Mapping[str, Any] | None = None,
    normalize: bool = False,
    more: str | None = None,
    **files: Mapping[str, Any],
) -> Path:
    """A folder with these files of sentence-transformers'; `files` are the contents by stem."""
    (bert() if model is None else model).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    kinds = [
        "Transformer",
        "Pooling",
        *(["Normalize"] if normalize else []),
        *([more] * bool(more)),
    ]
    listed = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"{PACKAGE}.{kind}"}
        for n, kind in enumerate(kind for kind in kinds if kind)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for module in listed[1:]:
        (folder / module["path"]).mkdir()
    pooled = {"word_embedding_dimension": 16, **(pooling or {"pooling_mode_mean_tokens": True})}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooled))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def by_sentence_transformers(folder: Path, texts: list[str]) -> torch.Tensor:
    """Each text by itself, so that no padding rounds otherwise."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return torch.stack([model.encode(text, convert_to_tensor=True) for text in texts])


def embedded(folder: Path, texts: list[str]) -> torch.Tensor:
    engine = TransformersEngine.load(folder)
    assert engine.embeds is not None
    assert engine.generates is None
    return embed(engine, texts)


def embed(engine: TransformersEngine, texts: list[str]) -> torch.Tensor:
    ids = [engine.embeds.tokens(text) for text in texts]
    module = engine.prepare({}).module
    alone = torch.cat([engine.embeds.embed(module, [one]) for one in ids])
    together = engine.embeds.embed(module, ids)
    assert torch.allclose(together, alone, atol=1e-5)
    assert alone.shape[1] == engine.embeds.dimensions
    return alone


PROMPTS = {"prompts": {"query": "weigh this: ", "document": ""}}

HONOURED: dict[str, dict[str, Any]] = {
    "plain": {},
    "cls": {"pooling": {"pooling_mode_cls_token": True}},
    "max": {"pooling": {"pooling_mode": "max"}},
    "last": {"pooling": {"pooling_mode": "lasttoken"}},
    "sqrt": {"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}},
    "weighted": {"pooling": {"pooling_mode": "weightedmean"}},
    "several": {"pooling": {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}},
    "named_several": {"pooling": {"pooling_mode": ["lasttoken", "cls"]}, "normalize": True},
    "none": {"pooling": {"pooling_mode_cls_token": False}},
    "normalized": {"normalize": True},
    "default_prompt": {"config_sentence_transformers": {**PROMPTS, "default_prompt_name": "query"}},
    "empty_default_prompt": {
        "config_sentence_transformers": {**PROMPTS, "default_prompt_name": "document"}
    },
    "no_default_prompt": {
        "config_sentence_transformers": {
            **PROMPTS,
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
            "model_type": "SentenceTransformer",
            "__version__": {"sentence_transformers": "5.0.0"},
        }
    },
    "prompt_not_pooled_but_none": {
        "pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False},
        "config_sentence_transformers": PROMPTS,
    },
    "truncated": {"normalize": True, "config_sentence_transformers": {"truncate_dim": 5}},
    "lower_case": {"sentence_bert_config": {"max_seq_length": 60, "do_lower_case": True}},
    "older_name": {"sentence_roberta_config": {"do_lower_case": True}},
    "newer_fields": {
        "sentence_bert_config": {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        }
    },
    "masked_language_model": {"model": "masked"},
    "causal_last_token": {
        "model": "causal",
        "pooling": {"pooling_mode_lasttoken": True},
        "normalize": True,
        "config_sentence_transformers": {**PROMPTS, "default_prompt_name": "query"},
    },
}

MODELS: dict[str, Callable[[], Any]] = {
    "masked": lambda: bert(BertForMaskedLM),
    "causal": qwen3,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("files", HONOURED.values(), ids=HONOURED)
def test_a_folder_embeds_as_sentence_transformers_does(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    model = MODELS[files["model"]]() if "model" in files else None
    folder = save(tmp_path / "folder", **{**files, "model": model})
    assert torch.equal(embedded(folder, TEXTS), by_sentence_transformers(folder, TEXTS))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_folder_that_sentence_transformers_writes_is_read(tmp_path: Path) -> None:
    """With every field it has today; a default prompt and dimensions set by the user."""
    first = save(tmp_path / "first", normalize=True)
    model = SentenceTransformer(
        str(first), device="cpu", prompts={"q": "quick "}, default_prompt_name="q", truncate_dim=7
    )
    model.max_seq_length = 33
    model.save(str(tmp_path / "again"))
    again = tmp_path / "again"
    got = embedded(again, TEXTS)
    assert torch.equal(got, by_sentence_transformers(again, TEXTS))
    assert not torch.equal(got, embedded(first, TEXTS)[:, :7])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"more": "Dense"}, "has modules Transformer, Pooling, Dense"),
        ({"pooling": {"pooling_mode": "median"}}, "pools by median"),
        ({"pooling": {"pooling_mode": []}}, "pools by nothing"),
        ({"pooling": {"gain": 2}}, "has gain 2 in config.json"),
        (
            {
                "pooling": {"include_prompt": False},
                "config_sentence_transformers": {**PROMPTS, "default_prompt_name": "query"},
            },
            "include_prompt false",
        ),
        (
            {"config_sentence_transformers": {"default_prompt_name": "q"}},
            "default prompt 'q' that is not among",
        ),
        ({"config_sentence_transformers": {"model_type": "SparseEncoder"}}, "'SparseEncoder'"),
        ({"config_sentence_transformers": {"brand_new": 1}}, "has brand_new 1 in config_sent"),
        ({"config_sentence_transformers": {"truncate_dim": 0}}, "truncate_dim 0"),
        ({"sentence_bert_config": {"max_seq_length": "many"}}, "max_seq_length 'many'"),
        ({"sentence_bert_config": {"transformer_task": "fill-mask"}}, "transformer_task"),
        ({"sentence_bert_config": {"processing_kwargs": {"text": {}}}}, "processing_kwargs"),
        ({"modules": []}, "has modules of no kind"),
        ({"modules": {}}, "not a list of modules"),
        ({"modules": [{"type": "own.Module", "path": ""}]}, "of its own code"),
        ({"adapter_config": {}}, "holds an adapter beside the model"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, files: dict[str, Any], says: str
) -> None:
    folder = save(tmp_path / "folder", **files)
    with pytest.raises(InvalidRequest, match=says):
        TransformersEngine.load(folder)


def test_a_name_that_stands_twice_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "folder", sentence_bert_config={"max_seq_length": 7})
    file = folder / "sentence_bert_config.json"
    file.write_text('{"max_seq_length": 9, ' + file.read_text().lstrip().removeprefix("{"))
    with pytest.raises(InvalidRequest, match="'max_seq_length' stands more than once"):
        TransformersEngine.load(folder)


def test_a_text_longer_than_the_folders_limit_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "folder", sentence_bert_config={"max_seq_length": 4})
    engine = TransformersEngine.load(folder)
    with pytest.raises(InvalidRequest, match="maximum context length is 4 tokens"):
        engine.embeds.tokens("the quick brown fox jumps over the lazy dog")


def test_ids_of_tokens_get_no_prompt(tmp_path: Path) -> None:
    config = {**PROMPTS, "default_prompt_name": "query"}
    engine = TransformersEngine.load(save(tmp_path / "f", config_sentence_transformers=config))
    assert engine.embeds.tokens([5, 6]) == [5, 6]
    assert engine.embeds.tokens("fox") == tokenizer()("weigh this: fox")["input_ids"]
