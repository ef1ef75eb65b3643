"""What becomes of each field of a folder's generation_config.json.

HONOURED   it changes which tokens follow, and does here what it does in transformers
REQUEST    it says how long a text gets and how its tokens are drawn, which a request says here
NO_EFFECT  it changes how the same tokens are arrived at, what is returned beside them, or nothing
REFUSED    it asks for another way of searching; refused at start unless it has a neutral value

A field that is in none of these is refused as those of the last are. Fields that transformers does
not know either do nothing there, and nothing here.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from weightledger.ledger.errors import InvalidRequest

HONOURED = frozenset(
    [
        "eos_token_id",
        "stop_strings",
        "min_length",
        "min_new_tokens",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
    ]
)
REQUEST = frozenset(
    [
        "max_length",
        "max_new_tokens",
        "num_return_sequences",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    ]
)
NO_EFFECT = frozenset(
    [
        # Of searches that are refused, and of encoder-decoders.
        "early_stopping",
        "length_penalty",
        "decoder_start_token_id",
        # Of prompts in batches and of empty ones, which there are none of.
        "pad_token_id",
        "bos_token_id",
        # A monotonic change of all logits at the very end.
        "renormalize_logits",
        # How caches are kept, how much is worked out at a time, and what is guessed ahead.
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "low_memory",
        "prefill_chunk_size",
        "use_mtp",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "assistant_ensemble_weight",
        "target_lookbehind",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
        "speculation_type",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "transformers_version",
        "_from_model_config",
    ]
)
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "max_time": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": ([],),
    "force_words_ids": ([],),
    "guidance_scale": (1.0,),
    "watermarking_config": ({},),
    "token_healing": (False,),
}
"""Neutral values by field, beside None."""


def settled(config: GenerationConfig) -> GenerationConfig:
    """Only what is honoured; InvalidRequest names what is not supported.

    Without stop strings, which `generate` would not take without a tokenizer; see `stop_strings`.
    """
    known = vars(GenerationConfig())
    given = {name: value for name, value in vars(config).items() if value is not None}
    odd = sorted(
        f"{name}={value!r:.40}"
        for name, value in given.items()
        if name in known
        and name not in HONOURED | REQUEST | NO_EFFECT
        and value not in REFUSED.get(name, ())
    )
    if odd:
        raise InvalidRequest(
            "generation_config.json asks for what is not supported here: "
            f"{', '.join(odd)}; take it out of the file to serve the folder without",
            param="model",
        )
    strings = given.get("stop_strings")
    if strings is not None and not _all_texts(strings):
        raise InvalidRequest(
            f"generation_config.json has stop_strings {strings!r:.80}; expected a text or a list "
            "of texts",
            param="model",
        )
    honoured = HONOURED - {"stop_strings"}
    return GenerationConfig(**{name: value for name, value in given.items() if name in honoured})


def stop_strings(config: GenerationConfig) -> tuple[str, ...]:
    """The texts after which a generation ends; they are part of it."""
    strings = config.stop_strings or ()
    return (strings,) if isinstance(strings, str) else tuple(strings)


def _all_texts(strings: Any) -> bool:
    many = [strings] if isinstance(strings, str) else strings
    return isinstance(many, list | tuple) and all(isinstance(one, str) and one for one in many)
