"""Every text architecture that transformers registers is served rightly, or refused by name.

A random model of each, as small as its config lets it be: what it says through the engine is what
transformers says without. One that is refused has to fail in transformers as well, or to be listed
here with the reason.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tests import architectures
from tests.text_models import tokenizer
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine, folder
from weightledger.ledger.errors import InvalidRequest

TOKENIZER = tokenizer()
TEXTS = [TOKENIZER(text)["input_ids"] for text in ("the quick fox", "weights change under it")]
TOKENS = 4

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# What transformers can do with them and this cannot, by what the refusal says.
REFUSED: dict[str, str] = {
    "big_bird": "for good",
    "rwkv": "for good",
    "flaubert": "submodule 'ffns.1'",
    "xlm": "ffns.1' would go on using the old weights",
    # Parts of models of several kinds, whose text goes through other methods than a model's own.
    "qwen3_omni_moe_thinker": "no attribute 'vision_start_token_id'",
    "sam3_lite_text_text_model": "`get_input_embeddings` not auto",
}

# Those whose fields no rule makes small and consistent; each new one has to be looked at.
NOT_SMALL = {
    "causal": "blt cohere_compass_text dbrx dots3_note dots3_note_text fuyu gemma3 gemma3n "
    "gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant "
    "got_ocr2 lfm2_moe moshi moss_transcribe_diarize musicgen musicgen_melody reformer zamba "
    "zamba2 zaya",
    "encoder": "funnel modernvbert neomme perceiver t5gemma ultravbert",
}


@pytest.fixture(scope="module", autouse=True)
def one_quiet_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared, and no advice of transformers'."""
    before, level = torch.get_num_threads(), logging.getLogger("transformers").level
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    yield
    torch.set_num_threads(before)
    logging.getLogger("transformers").setLevel(level)


def small(kind: str, *, causal: bool) -> Any:
    if kind in NOT_SMALL["causal" if causal else "encoder"].split():
        pytest.skip("its config has no small form here")
    return architectures.model(kind, causal=causal)


def served(model: Any, kind: str, theirs: Callable[[], Any], **options: Any) -> TransformersEngine:
    """The engine; skips the test where it is refused rightly."""
    try:
        return TransformersEngine(model, TOKENIZER, **options)
    except InvalidRequest as error:
        refused = str(error)
    assert type(model).__name__ in refused or "submodule" in refused
    if kind in REFUSED:
        assert REFUSED[kind] in refused
    else:
        with pytest.raises(Exception, match=r"."):
            theirs()
    pytest.skip(refused[:200])


@pytest.mark.parametrize("kind", architectures.causal_kinds())
def test_a_causal_model_says_what_it_says_in_transformers(kind: str) -> None:
    model = small(kind, causal=True)

    def theirs(prompt: list[int] = TEXTS[0]) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
                pad_token_id=2,
            )
        return made[0].tolist()

    engine = served(model, kind, theirs)
    assert engine.generates is not None
    model.config.architectures = [type(model).__name__]
    assert folder.kind(model.config) is AutoModelForCausalLM
    module = engine.prepare({}).module
    for prompt in TEXTS:
        made = theirs(prompt)
        pieces: list[str] = []
        engine.generates.generate(
            module, prompt, Sampling(TOKENS, 0.0), lambda piece, to=pieces: not to.append(piece)
        )
        known, whole = (TOKENIZER.decode(ids, skip_special_tokens=True) for ids in (prompt, made))
        assert "".join(pieces) == whole[len(known) :]
    reaches(
        engine.generates,
        lambda ids: engine.generates.generate(module, ids[:-1], Sampling(1, 0.0), lambda _: True),
    )


@pytest.mark.parametrize("kind", architectures.encoder_kinds())
def test_an_encoder_embeds_as_it_does_in_transformers(kind: str) -> None:
    embeds_rightly(small(kind, causal=False), kind)


@pytest.mark.soak
@pytest.mark.parametrize("kind", architectures.other_kinds())
def test_what_is_no_text_model_is_refused_or_embeds_as_it_does_in_transformers(kind: str) -> None:
    try:
        model = architectures.model(kind, causal=False)
    except Exception as error:
        pytest.skip(f"its config has no small form here: {error!r:.100}")
    embeds_rightly(model, kind)


def embeds_rightly(model: Any, kind: str) -> None:
    def theirs(text: list[int] = TEXTS[0]) -> torch.Tensor:
        with torch.no_grad():
            hidden: torch.Tensor = model(input_ids=torch.tensor([text])).last_hidden_state
        assert hidden.shape[:2] == (1, len(text))
        return hidden.sum(1) / len(text)

    model.config.architectures = [type(model).__name__]
    auto = folder.kind(model.config, embedder=True)
    if auto is None:
        part = type(model).__name__ not in folder._names(MODEL_MAPPING_NAMES)
        assert model.config.is_encoder_decoder or part, "a part of a model of several kinds"
        pytest.skip("a folder of it is refused by its architecture")
    assert auto in (AutoModel, AutoModelForTextEncoding)
    engine = served(model, kind, theirs, embeds=True)
    module = engine.prepare({}).module
    assert engine.embeds is not None
    alone = torch.cat([engine.embeds.embed(module, [text]) for text in TEXTS])
    assert torch.allclose(alone, torch.cat([theirs(text) for text in TEXTS]), rtol=1e-4, atol=1e-6)
    together = engine.embeds.embed(module, TEXTS)
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-4)
    reaches(engine.embeds, lambda ids: engine.embeds.embed(module, [ids]))


def reaches(offer: Any, use: Callable[[list[int]], Any]) -> None:
    """The longest text that is allowed works, and is not one token shorter than it could be."""
    if offer.max_tokens <= architectures.POSITIONS:
        assert offer.max_tokens >= architectures.POSITIONS - 3
        use((TEXTS[0] * 50)[: offer.max_tokens])
