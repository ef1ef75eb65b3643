"""TransformersEngine: a Hugging Face model and its tokenizer, in several versions side by side.

Needs the extra `transformers`; nothing else of the ledger imports it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.engines.transformers import folder
from weightledger.ledger.engines.transformers.causal import CausalLM
from weightledger.ledger.engines.transformers.encoder import MEAN, Encoder, Pooling
from weightledger.ledger.engines.transformers.tokens import Tokens
from weightledger.ledger.engines.versions import Candidate
from weightledger.ledger.errors import InvalidRequest

if TYPE_CHECKING:
    from weightledger.ledger.engines.transformers.adapters import AdaptedSkeleton


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
        self._readied: AdaptedSkeleton | None = None
        parts.config.use_cache = kept

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> Candidate:
        """The next version, with the adapters that are live; otherwise as TorchEngine's."""
        return self._with(super().prepare(tensors), self._live_skeletons())

    def prepare_with(
        self, tensors: Mapping[str, torch.Tensor], adapters: Mapping[str, Adapter]
    ) -> Candidate:
        """The next version with these adapters and no others; see AdapterEngine."""
        live = self._live_skeletons()
        skeletons = {}
        for name, adapter in adapters.items():
            candidates = (live.get(name), self._readied)
            known = next((s for s in candidates if s and s.adapter.same_tensors(adapter)), None)
            skeletons[name] = known or self._skeleton_of(adapter)
        return self._with(super().prepare(tensors), skeletons)

    def ready(self, adapter: Adapter) -> None:
        """Let peft make its modules now; the last adapter's are kept until they are shown."""
        self._readied = self._skeleton_of(adapter)

    def transposed(self, module: str) -> bool | None:
        """Whether it is a Conv1D, as GPT-2's linear layers are."""
        return isinstance(self._module.get_submodule(module), Conv1D)

    def _with(self, base: Candidate, skeletons: "Mapping[str, AdaptedSkeleton]") -> Candidate:
        """The candidate with a module for each adapter; those that stay as they are are shared."""
        same = self._live_skeletons() if base.whole is base.base else {}
        live = self._versions.adapted
        adapted = {
            name: live[name] if same.get(name) is skeleton else skeleton.build(base.whole)
            for name, skeleton in skeletons.items()
        }
        return replace(base, adapted=adapted)

    def _live_skeletons(self) -> "dict[str, AdaptedSkeleton]":
        live: Any = self._versions.adapted
        return {name: adapted.skeleton for name, adapted in live.items()}

    def _skeleton_of(self, adapter: Adapter) -> "AdaptedSkeleton":
        # peft takes seconds to import, and most servers never need it.
        try:
            from weightledger.ledger.engines.transformers.adapters import AdaptedSkeleton
        except ImportError as error:
            raise InvalidRequest(
                f"adapters need peft, which is not here ({error}); install it with: "
                "pip install 'weightledger[transformers]'"
            ) from error
        return AdaptedSkeleton(adapter, self._skeleton, self._naming)

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
