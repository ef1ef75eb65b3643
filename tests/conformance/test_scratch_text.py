"""Text models that work out their positions anew for each length: parallel requests of different
lengths get the answers that each would get alone."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from tests.conformance.test_engines import put, values
from tests.text_models import llama, tokenizer
from tests.waiting import PATIENCE_S
from weightledger.ledger.engines.scratch import scratches
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.transformers import TransformersEngine

ORIGINAL = 128
SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.4,  # so that positions matter to what comes next
}


def longrope() -> PreTrainedModel:
    """A random Phi-3 whose frequencies are others from 129 tokens on."""
    torch.manual_seed(5)
    return Phi3ForCausalLM(
        Phi3Config(
            **SMALL,
            original_max_position_embeddings=ORIGINAL,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [32.0, 16.0, 64.0, 64.0],
                "original_max_position_embeddings": ORIGINAL,
            },
        )
    )


def dynamic() -> PreTrainedModel:
    """A random Llama whose frequencies grow with the longest input so far."""
    torch.manual_seed(6)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    return llama(max_position_embeddings=ORIGINAL, rope_parameters=rope, initializer_range=0.4)


def sinusoids() -> PreTrainedModel:
    """A random GPT-J, which keeps its table of positions on each layer."""
    torch.manual_seed(7)
    return GPTJForCausalLM(
        GPTJConfig(
            vocab_size=384,
            n_embd=32,
            n_layer=2,
            n_head=4,
            rotary_dim=8,
            n_positions=512,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


MODELS = {"longrope": longrope, "dynamic": dynamic, "sinusoids": sinusoids}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)

SHORT, LONG = [0, *range(30, 60)], [0, *(20 + n % 300 for n in range(200))]


def generated(generates: Any, module: torch.nn.Module, prompt: list[int]) -> str:
    pieces: list[str] = []

    def emit(text: str) -> bool:
        pieces.append(text)
        return True

    generates.generate(module, prompt, Sampling(16, temperature=0.0), emit)
    return "".join(pieces)


def started(make: Callable[[], PreTrainedModel]) -> TransformersEngine:
    engine = TransformersEngine(make(), tokenizer())
    put(engine, {}, 0)
    return engine


def alone(make: Callable[[], PreTrainedModel], engine: Any, prompt: list[int]) -> str:
    """The answer of a model of its own with the engine's weights."""
    model = make().eval()
    with torch.no_grad():
        for name in engine.specs():
            model.get_parameter(name).copy_(engine.tensor(name))
    return generated(engine.generates, model, prompt)


@models
def test_short_and_long_prompts_at_once_get_the_answers_they_get_alone(
    make: Callable[[], PreTrainedModel],
) -> None:
    engine = started(make)
    wrong: list[tuple[int, str]] = []
    for seq in range(2):
        expected = {len(p): alone(make, engine, p) for p in (SHORT, LONG)}
        ready = threading.Barrier(2, timeout=PATIENCE_S)

        def ask(prompt: list[int], expected: Any = expected, ready: Any = ready) -> None:
            ready.wait()
            for _ in range(15):
                with engine.lease() as live:
                    answer = generated(engine.generates, live.module, prompt)
                if answer != expected[len(prompt)]:
                    wrong.append((len(prompt), answer))

        threads = [threading.Thread(target=ask, args=[p]) for p in (SHORT, LONG)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        name = next(name for name in engine.specs() if "norm" in name or "ln_f" in name)
        put(engine, values(engine, seq, [name]), seq + 1)
    engine.check_untouched()


@models
def test_an_answer_does_not_hang_on_what_was_asked_before(
    make: Callable[[], PreTrainedModel],
) -> None:
    engine = started(make)
    expected = {len(p): alone(make, engine, p) for p in (SHORT, LONG, LONG[:140])}
    for prompt in (LONG, SHORT, LONG[:140], LONG, SHORT):
        with engine.lease() as live:
            assert generated(engine.generates, live.module, prompt) == expected[len(prompt)]


WRITTEN = {
    "longrope": {"model.rotary_emb"},
    "dynamic": {"model.rotary_emb"},
    "sinusoids": {"transformer.h.0.attn", "transformer.h.1.attn"},
}


@pytest.mark.parametrize("name", MODELS)
def test_their_code_shows_where_they_write(name: str) -> None:
    assert scratches(MODELS[name]()).keys() == WRITTEN[name]


def test_models_that_work_out_their_positions_once_are_shared() -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    for model in (llama(), llama(rope_parameters=rope)):
        assert not scratches(model)
        engine = TransformersEngine(model, tokenizer())
        put(engine, {}, 0)
        assert engine.lease().module is engine.lease().module
