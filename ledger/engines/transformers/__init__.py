"""TransformersEngine: a Hugging Face model and its tokenizer, in several versions side by side.

Needs the extra `transformers`; nothing else of the ledger imports it.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec.structs import replace
from transformers.pytorch_utils import Conv1D

from weightledger.ledger.adapters.adapter import Adapter
from weightledger.ledger.engines.text import Sampling
from weightledger.ledger.engines.torch import TorchEngine
from weightledger.ledger.engines.transformers import folder, trial
from weightledger.ledger.engines.transformers.causal import CausalLM
from weightledger.ledger.engines.transformers.encoder import MEAN, Encoder, Pooling
from weightledger.ledger.engines.transformers.generation_settings import settled, stop_strings
from weightledger.ledger.engines.transformers.tokens import Tokens
from weightledger.ledger.engines.versions import Candidate
from weightledger.ledger.errors import InvalidRequest

if TYPE_CHECKING:
    from weightledger.ledger.engines.transformers.adapters import (
        AdaptedModule,
        AdaptedSkeleton,
    )


class TransformersEngine(TorchEngine):
    """Holds a transformers model as TorchEngine does, and serves its text.

    A model that can generate has `generates`, any other `embeds`; the other is None. `tokenizer`
    is a transformers tokenizer; `pooling` says how an encoder's vectors are made of its tokens',
    `prompt` goes before each of its texts, `max_tokens` limits a text below what the model itself
    takes. `embeds` True has a model that could generate embed; its forward then has to give
    hidden states. Raises InvalidRequest for a model that cannot do it: it is tried out here.

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
        prompt: str = "",
        embeds: bool | None = None,
    ) -> None:
        parts: Any = model
        self._readied: AdaptedSkeleton | None = None
        generates = parts.can_generate() if embeds is None else not embeds
        with _for_serving(parts, generates=generates):
            super().__init__(model)
        # Like versions, it shares their tensors; what a forward leaves in a module stays in this.
        tried: Any = self._skeleton.build(self._versions.tensors, share=False)
        self.generates: CausalLM | None = None
        self.embeds: Encoder | None = None
        try:
            before = trial.ForwardSettings.of(tried)
            ids = trial.ordinary(tokenizer, tried)
            tokens = Tokens(tokenizer, tried, max_tokens, trial.reach(tried, ids[0]))
            if generates:
                self.generates = CausalLM(tokens, stop_strings(parts.generation_config))
                self.generates.generate(tried, ids[:2], Sampling(2, 0.0), lambda _: True)
            else:
                width, padded = trial.embedding(tried, ids, tokens.pad)
                self.embeds = Encoder(tokens, pooling, width=width, prompt=prompt, padded=padded)
            before.require_same(tried)
        except InvalidRequest:
            raise
        except Exception as error:
            task = "generating" if generates else "embedding"
            raise InvalidRequest(
                f"{type(model).__name__} cannot be served: {task} a few tokens fails with "
                f"{type(error).__name__}: {error}",
                param="model",
            ) from error

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
        return isinstance(self._line.module.get_submodule(module), Conv1D)

    def apart(self) -> "TransformersEngine":
        """Another engine with a copy of the live model and of its tokens' ways."""
        own = copy.copy(self)
        own._readied = None
        TorchEngine.__init__(own, super().prepare({}).module)
        return own

    def publish(self, prepared: Candidate, *, seq: int, digest: bytes) -> None:
        """Make a prepared version with its adapters the one that the next lease gets."""
        with self._line.lock:
            self._versions.require_newest(prepared)
            for adapted in _modules(prepared.adapted).values():
                adapted.show()
            super().publish(prepared, seq=seq, digest=digest)

    def _with(self, base: Candidate, skeletons: "Mapping[str, AdaptedSkeleton]") -> Candidate:
        """The candidate with a module for each adapter; those that stay as they are are shared."""
        live = _modules(self._versions.adapted)
        adapted: dict[str, AdaptedModule] = {}
        for name, skeleton in skeletons.items():
            known = live.get(name)
            if known is None or known.skeleton is not skeleton:
                adapted[name] = skeleton.start(base)
            else:
                adapted[name] = known if base.built is None else known.after(base)
        return replace(base, adapted=adapted)

    def _live_skeletons(self) -> "dict[str, AdaptedSkeleton]":
        live = _modules(self._versions.adapted)
        return {name: adapted.skeleton for name, adapted in live.items()}

    def _look(self) -> None:
        super()._look()
        for adapted in _modules(self._versions.adapted).values():
            adapted.line.look()

    def _is_dirty(self) -> bool:
        live = self._versions.adapted
        return super()._is_dirty() or any(one.line.dirty for one in _modules(live).values())

    def _renewed_adapted(self) -> "Mapping[str, AdaptedModule]":
        live = _modules(self._versions.adapted)
        return {name: one.renewed() if one.line.dirty else one for name, one in live.items()}

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
        read = folder.read(path)
        return cls(
            read.model,
            read.tokenizer,
            pooling=read.sentences.pooling,
            max_tokens=read.sentences.max_tokens,
            prompt=read.sentences.prompt,
            embeds=read.embeds,
        )


@contextmanager
def _for_serving(model: Any, *, generates: bool) -> Iterator[None]:
    """The model with the settings that its versions are to have, which copies of it keep."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    caching = [config for config in configs.values() if hasattr(config, "use_cache")]
    kept = [config.use_cache for config in caching]
    said = model.generation_config if generates else None
    try:
        if generates:
            model.generation_config = settled(said)
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config, value in zip(caching, kept, strict=True):
            config.use_cache = value
        if generates:
            model.generation_config = said


def _modules(adapted: Any) -> "Mapping[str, AdaptedModule]":
    """What this engine prepared for its adapters."""
    modules: Mapping[str, AdaptedModule] = adapted
    return modules
