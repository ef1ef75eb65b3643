"""LoRA adapters for the small Llama, as peft saves them."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.text_models import llama

TARGETS = ("q_proj", "v_proj", "down_proj")


def save_adapter(
    folder: Path,
    seed: int,
    *,
    base: Any = None,
    dtype: torch.dtype | None = None,
    save_embedding_layers: bool | str = False,
    **fields: Any,
) -> Path:
    """An adapter whose matrices are random and large enough to change every text."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS), "lora_dropout": 0.1, **fields}
    )
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(), _unwarned():
        model = get_peft_model(llama() if base is None else base, config)
    for name, matrix in model.named_parameters():
        if ".lora_" in name:
            matrix.data = torch.randn(matrix.shape, generator=random).mul_(0.2).to(dtype)
    with _unwarned():
        model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return folder


def change_config(folder: Path, **fields: Any) -> None:
    """Other fields in an adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def peft_model(folder: Path, base: Any = None) -> Any:
    """The same adapter on the same base, loaded by peft itself."""
    with _unwarned():
        return PeftModel.from_pretrained(llama() if base is None else base, folder).eval()


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """PeftModel uses what transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
