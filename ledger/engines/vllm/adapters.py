"""LoRA adapters as the folders that servers load, a new one for each version of the weights."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.errors import StorageError, UnsupportedModel
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class WrittenAdapter:
    """An adapter of a state, and the folder that a server loads it from."""

    adapter: Adapter
    folder: Path

    def leased(self) -> torch.nn.Module:
        """There is none here: raises UnsupportedModel."""
        raise UnsupportedModel("the server holds the model; ask it to infer through an adapter")


def written(root: Path, adapter: Adapter) -> WrittenAdapter:
    """An adapter of a state as a folder below `root`; StorageError when it cannot be written."""
    try:
        return WrittenAdapter(
            adapter, write_adapter(root, adapter.name, adapter.tensors, adapter.config)
        )
    except OSError as error:
        raise StorageError(f"adapter {adapter.name!r} cannot be written: {error}") from error


def write_adapter(
    root: Path, name: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> Path:
    """Write an adapter in PEFT's form below `root`; the folder is named by its content.

    Other weights or another config give another folder, and the same give the same one, so what a
    server has cached for a folder is never stale. `config` is PEFT's adapter_config.json.
    """
    text = json.dumps(dict(config), sort_keys=True, indent=2)
    parts = [
        f"{key} {tensor.dtype} {list(tensor.shape)} {content_digest(lanes(tensor, key)).hex()}"
        for key, tensor in sorted(tensors.items())
    ]
    digest = content_digest("\n".join([text, *parts]).encode()).hex()
    folder = root / name / digest[:32]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: the name appears when everything is in it.
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, fresh / _WEIGHTS)
        (fresh / _CONFIG).write_text(text)
        fresh.chmod(0o755)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder
