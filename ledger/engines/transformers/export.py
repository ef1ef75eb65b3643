"""A state as a Hugging Face folder, which `from_pretrained` loads.

Everything but the weights is the served folder's: its config, tokenizer and pooling files. Adapters
are PEFT folders beside the model, in `adapters/NAME`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from weightledger.ledger.adapters import folder as peft
from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.engines.transformers import folder
from weightledger.ledger.errors import InvalidRequest

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def write(
    served: Path, weights: Mapping[str, torch.Tensor], adapters: Mapping[str, Adapter], out: Path
) -> None:
    """Write the folder `out`, which must not exist; `weights` by bare name, tied ones under each.

    InvalidRequest where the served folder is of another model, OSError where it cannot be written.
    """
    model = folder.read(served).model
    own = model.state_dict()
    differing = sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own
        or name not in weights
        or (own[name].shape, own[name].dtype) != (weights[name].shape, weights[name].dtype)
    )
    if differing:
        raise InvalidRequest(
            f"{served} holds another model than the ledger: {', '.join(differing[:4])} differ",
            param="hugging_face",
        )
    model.load_state_dict(dict(weights))
    model.save_pretrained(out)  # type: ignore[operator]
    shutil.copytree(served, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_WEIGHTS))
    for name, adapter in adapters.items():
        place = out / "adapters" / name
        place.mkdir(parents=True)
        (place / peft.CONFIG).write_text(json.dumps(dict(adapter.config), indent=2))
        save_file(dict(adapter.tensors), place / peft.WEIGHTS, metadata={"format": "pt"})
