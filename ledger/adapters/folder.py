"""Reading an adapter's folder, as PEFT writes it: adapter_config.json, adapter_model.safetensors.

Nothing is unpickled, and no code from the folder runs.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.tensors.lanes import clone

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MOST_CONFIG_BYTES = 1 << 20


def read(name: str, path: str | Path) -> Adapter:
    """The adapter in a folder, under a name.

    NotFound when there is no such folder; InvalidRequest, naming what was expected, for anything
    in it that is not an adapter in safetensors form.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            raise NotFound(f"No adapter found for {path}", param="lora_path")
        config = _config(folder)
        # Copied to memory of their own: a tensor that lies at an odd address in the file's bytes
        # computes other last bits than the same one read back from the ledger.
        tensors = {key: clone(tensor) for key, tensor in load_file(_weights(folder)).items()}
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise _refused(folder, f"cannot be read: {error}") from error
    return Adapter.new(name, config, tensors)


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise _refused(folder, f"has no {CONFIG}; expected a folder that PEFT saved")
    if file.stat().st_size > _MOST_CONFIG_BYTES:
        raise _refused(folder, f"has a {CONFIG} of more than {_MOST_CONFIG_BYTES} bytes")
    config = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise _refused(folder, f"has a {CONFIG} that is not a JSON object")
    return config


def _weights(folder: Path) -> Path:
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = sorted(found.name for found in folder.glob("adapter_model.*"))
        also = f" ({', '.join(pickled)} is not read: pickled files run code)" if pickled else ""
        raise _refused(folder, f"has no {WEIGHTS}{also}")
    return file


def _refused(folder: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"{folder} {why}", param="lora_path")
