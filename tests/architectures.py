"""Small random models of every architecture that transformers registers for text."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

VOCABULARY = 384
POSITIONS = 48
LARGEST = 8_000_000

# Fields that make a model small, under all the names that families have for them.
SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "model_dim"], 32),
    **dict.fromkeys(["embedding_size", "word_embed_proj_dim", "rnn_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "hidden_dim", "n_inner", "d_inner"], 48),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "attention_hidden_size"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["decoder_layers", "encoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_encoder_layers", "num_blocks"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "multi_query_group_num"], 2),
    **dict.fromkeys(["head_dim", "d_kv", "attention_head_size", "kv_channels"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size"], 16),
    **dict.fromkeys(["shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], POSITIONS),
    **dict.fromkeys(["linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"], 8),
    **dict.fromkeys(["chunk_size", "mamba_chunk_size"], 16),  # to which texts are filled up
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


# Sizes that only one type has, and those of theirs that have to go together.
_FOUR_LAYERS = {"num_hidden_layers": 4}
PARTICULAR: Mapping[str, Mapping[str, Any]] = {
    "bailing_hybrid": _FOUR_LAYERS,
    "kimi_linear": _FOUR_LAYERS,
    "lfm3": _FOUR_LAYERS,
    "qwen3_5_text": _FOUR_LAYERS,
    "qwen3_5_moe_text": _FOUR_LAYERS,
    "qwen3_next": _FOUR_LAYERS,
    "recurrent_gemma": _FOUR_LAYERS,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "rwkv": {"attention_hidden_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "dots1": {"topk_group": 1, "n_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "esmc": {"num_key_value_heads": 4},
    "reformer": {"axial_pos_embds": False},
    "mamba2": {"num_heads": 8, "expand": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_state": 16},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "luke": {"entity_vocab_size": 8},
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
}


def causal_kinds() -> list[str]:
    """Model types that have a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def encoder_kinds() -> list[str]:
    """Model types that encode text, as far as transformers says so."""
    return sorted({*MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})


def other_kinds() -> list[str]:
    """All other model types: pictures, sound, and several of them together."""
    return sorted({*MODEL_MAPPING_NAMES} - {*causal_kinds(), *encoder_kinds()})


def config(kind: str) -> Any:
    """A config of that type with all sizes small; raises whatever transformers does for others."""
    return CONFIG_MAPPING[kind](**_small(CONFIG_MAPPING[kind]))


def _small(made: Any) -> dict[str, Any]:
    fields = {name: value for name, value in SMALL.items() if _has(made, name)}
    if "qk_rope_head_dim" in fields:
        # Multi-head latent attention: one key for each query, whose size follows from its parts.
        fields.pop("head_dim", None)
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    for name, part in getattr(made, "sub_configs", {}).items():
        if hasattr(part, "__dataclass_fields__"):
            fields[name] = _small(part)
    return {**fields, **PARTICULAR.get(made.model_type, {})}


def model(kind: str, *, causal: bool) -> Any:
    """A random model of that type, the same each time.

    Raises whatever transformers does where fields do not fit together, and ValueError for one
    that stays large.
    """
    auto: Any = AutoModelForCausalLM if causal else AutoModel
    if not causal and kind in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        auto = AutoModelForTextEncoding
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(config(kind)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} weights")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return auto.from_config(config(kind)).eval()


def _has(made: Any, name: str) -> bool:
    return name in made.__dataclass_fields__ or name in getattr(made, "attribute_map", {})
