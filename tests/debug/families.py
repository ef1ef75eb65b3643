"""Small models of each kind of layer that adapters change, and adapters for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from tests.debug.adapted import Family
from tests.text_models import llama


def gpt2() -> Any:
    """Conv1D and embeddings, and a head that is tied to one."""
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 512, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=384, bos_token_id=0, eos_token_id=1, **shape)
        return GPT2LMHeadModel(config).eval()


def opt() -> Any:
    """Linear layers and an embedding in half precision, each by itself."""
    shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {"word_embed_proj_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return OPTForCausalLM(OPTConfig(vocab_size=384, **shape, **own)).bfloat16().eval()


def small_llama() -> Any:
    return llama(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).half()


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "gpt2": (
        gpt2,
        {
            "conv": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
            "square": {"target_modules": ["attn.c_proj"], "r": 2, "fan_in_fan_out": True},
            "tied": {"target_modules": ["wte", "wpe"]},
            "wpe": {"target_modules": ["wpe"], "dtype": torch.bfloat16},
        },
        (".wte.",),
    ),
    "opt": (
        opt,
        {
            "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
            "brings": {
                "target_modules": ["q_proj", "lm_head"],
                "use_rslora": True,
                "save_embedding_layers": True,
            },
            "half": {"target_modules": ["k_proj"], "dtype": torch.bfloat16, "r": 1},
        },
        (),
    ),
    "llama": (
        small_llama,
        {
            "plain": {},
            "all": {"target_modules": "all-linear", "dtype": torch.float16},
            "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        },
        (),
    ),
}


def family(name: str, folder: Path) -> Family:
    """One of `FAMILIES`, its adapters in a folder."""
    base, fields, tied = FAMILIES[name]
    return Family.of(folder, base, fields, tied)
