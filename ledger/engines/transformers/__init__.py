"""TransformersEngine: a Hugging Face model and its tokenizer, in several versions side by side.

Needs the extra `transformers`; nothing else of the ledger imports it.
"""

from pathlib import Path
from typing import Any

import torch

from ledger.engines.torch import TorchEngine
from ledger.engines.transformers import folder
from ledger.engines.transformers.causal import CausalLM
from ledger.engines.transformers.encoder import MEAN, Encoder, Pooling
from ledger.engines.transformers.tokens import Tokens


class TransformersEngine(TorchEngine):
    """Holds a transformers model as TorchEngine does, and serves its text.

    A model that can generate has `generates`, any other `embeds`; the other is None. `tokenizer`
    is a transformers tokenizer; `pooling` says how an encoder's vectors are made of its tokens',
    `max_tokens` limits a text below what the model itself takes.

    A plain call of a version's module, as `/invocations` and evaluators make it, returns no
    key-value cache; generations have one all the same.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        pooling: Pooling = MEAN,
        max_tokens: int | None = None,
    ) -> None:
        parts: Any = model
        tokens = Tokens(tokenizer, parts, max_tokens)
        self.generates = CausalLM(tokens) if parts.can_generate() else None
        self.embeds = None if self.generates else Encoder(tokens, parts, pooling)
        kept = parts.config.use_cache
        parts.config.use_cache = False
        super().__init__(model)
        parts.config.use_cache = kept

    @classmethod
    def load(cls, path: Path) -> "TransformersEngine":
        """The model in a folder that `save_pretrained` wrote, or that was downloaded whole.

        Only safetensors files are read and no code from the folder runs. For an encoder, the
        pooling and the limit on tokens are those of sentence-transformers' files in the folder;
        without them the mean over all tokens, not normalised. Raises InvalidRequest, naming what
        was expected, for anything else.
        """
        found = folder.read(path)
        return cls(found.model, found.tokenizer, pooling=found.pooling, max_tokens=found.max_tokens)
