"""generation_config.json: each field honoured, said by the request, without effect, or refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.api.test_generation import greedy
from tests.text_models import llama, metaspace_tokenizer, save_llama, tokenizer
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.engines.transformers import generation_settings as settings
from weightledger.ledger.errors import InvalidRequest

PROMPT = "the quick brown"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as the most likely token may hang on the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def said(engine: TransformersEngine, prompt: str, count: int) -> tuple[str, Any]:
    pieces: list[str] = []
    finished = engine.generates.generate(
        engine.prepare({}).module,
        engine.generates.tokens(prompt),
        Sampling(count, 0.0),
        lambda piece: not pieces.append(piece),
    )
    # Another token may give the last character its other bytes.
    return "".join(pieces).removesuffix("\ufffd"), finished


def by_transformers(tokenize: Any, prompt: str, count: int, **fields: Any) -> tuple[str, int]:
    """Text and number of new tokens that `generate` itself makes of the same settings."""
    model = llama()
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    ids = tokenize(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            tokenizer=tokenize,
        )[0]
    known = tokenize.decode(ids[0], skip_special_tokens=True)
    # The token that ends a text is none of it.
    ends = fields.get("eos_token_id", 1)
    shown = made[:-1] if made[-1] in torch.tensor(ends) else made
    text = tokenize.decode(shown, skip_special_tokens=True)[len(known) :]
    return text.removesuffix("\ufffd"), len(made) - len(ids[0])


def test_every_field_that_transformers_has_is_in_one_row_of_the_table() -> None:
    fields = set(vars(GenerationConfig()))
    rows = [settings.HONOURED, settings.REQUEST, settings.NO_EFFECT, set(settings.REFUSED)]
    assert set().union(*rows) == fields
    assert sum(map(len, rows)) == len(fields)


FULL, _ = by_transformers(tokenizer(), PROMPT, 40)
FIRST = greedy(llama(), tokenizer()(PROMPT)["input_ids"], 40)

HONOURED: dict[str, Any] = {
    "eos_token_id": [1, FIRST[6]],
    "stop_strings": ["ber", "never there"],
    "min_length": 60,
    "min_new_tokens": 30,
    "repetition_penalty": 1.9,
    "encoder_repetition_penalty": 0.4,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[FIRST[3]], [FIRST[1], FIRST[2]]],
    "forced_bos_token_id": 77,
    "forced_eos_token_id": 1,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (3, 1.5),
    "suppress_tokens": [FIRST[2], FIRST[4]],
    "begin_suppress_tokens": [FIRST[0]],
    "sequence_bias": [[[FIRST[1]], -50.0]],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("field", sorted(settings.HONOURED))
def test_what_is_honoured_gives_the_text_that_transformers_gives(field: str) -> None:
    fields = {field: HONOURED[field]}
    if field == "min_new_tokens":
        fields["eos_token_id"] = FIRST[6]
    model = llama()
    for name, value in fields.items():
        setattr(model.generation_config, name, value)
    engine = TransformersEngine(model, tokenizer())
    text, finished = said(engine, PROMPT, 40)
    assert (text, finished.tokens) == by_transformers(tokenizer(), PROMPT, 40, **fields)
    # These have no effect on this text, or none that one sees.
    if field not in ("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"):
        assert field in ("min_length", "min_new_tokens") or text != FULL


@pytest.mark.parametrize("words", ["fo", ["s ov", "x"], "ber", ["€ €", "wn" + FULL[:2]]])
def test_stop_strings_end_where_they_do_in_transformers(words: Any) -> None:
    model = llama()
    model.generation_config.stop_strings = words
    engine = TransformersEngine(model, tokenizer())
    text, finished = said(engine, PROMPT, 40)
    assert (text, finished.tokens) == by_transformers(tokenizer(), PROMPT, 40, stop_strings=words)
    assert finished.reason == ("stop" if finished.tokens < 40 else "length")


@pytest.mark.parametrize("form", [False, True], ids=["mistral", "llama-2"])
def test_a_metaspace_tokenizer_continues_with_its_space(form: bool) -> None:
    tokenize = metaspace_tokenizer(llama2=form)
    words = [number for word, number in tokenize.get_vocab().items() if word.startswith("▁")]
    likely = {"sequence_bias": [[[number], 9.0] for number in words]}
    model = llama()
    model.generation_config.sequence_bias = likely["sequence_bias"]
    engine = TransformersEngine(model, tokenize)
    for prompt in ("the", "the quick", "weights change", "naïve 東京"):
        text, _ = said(engine, prompt, 12)
        assert text == by_transformers(tokenize, prompt, 12, **likely)[0]
        assert text.startswith(" ")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_the_request_says_and_what_has_no_effect_changes_nothing() -> None:
    model = llama()
    for name, value in {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 5,
        "min_p": 0.5,
        "max_new_tokens": 2,
        "max_length": 3,
        "num_return_sequences": 3,
        "cache_implementation": "static",
        "prompt_lookup_num_tokens": 3,
        "output_scores": True,
        "return_dict_in_generate": True,
        "renormalize_logits": True,
        "pad_token_id": 9,
        "not_a_field": 5,
    }.items():
        setattr(model.generation_config, name, value)
    kept = model.generation_config.to_dict()
    assert said(TransformersEngine(model, tokenizer()), PROMPT, 40)[0] == FULL
    assert model.generation_config.to_dict() == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_beams", 4),
        ("penalty_alpha", 0.6),
        ("dola_layers", "high"),
        ("guidance_scale", 1.5),
        ("watermarking_config", {"bias": 2.5}),
        ("token_healing", True),
        ("force_words_ids", [[5]]),
        ("max_time", 1.0),
        ("num_beam_groups", 2),
        ("constraints", ["x"]),
        ("diversity_penalty", 0.5),
        ("stop_strings", [5]),
        ("stop_strings", ""),
        ("bad_words_ids", [["x"]]),
    ],
)
def test_what_is_not_supported_is_refused_at_start(
    tmp_path: Path, field: str, value: object
) -> None:
    folder = save_llama(tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(file.read_text().replace("{", f'{{"{field}": {json.dumps(value)},', 1))
    with pytest.raises(InvalidRequest) as refused:
        TransformersEngine.load(folder)
    assert field in str(refused.value)


def test_neutral_values_are_taken() -> None:
    for field, values in settings.REFUSED.items():
        for value in (None, *values):
            config = GenerationConfig(eos_token_id=1)
            setattr(config, field, value)
            assert settings.settled(config).eos_token_id == 1
