"""Embedding text: an encoder's vectors of the tokens, pooled into one.

Pooling as in Reimers & Gurevych, Sentence-BERT (2019), section 3, with the names that
sentence-transformers' files use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from weightledger.ledger.engines.text import Prompt

if TYPE_CHECKING:
    from weightledger.ledger.engines.transformers.tokens import Tokens

MODES = ("mean", "cls", "max", "lasttoken")


@dataclass(frozen=True, slots=True)
class Pooling:
    """How one vector is made of the tokens' (`mode`, one of MODES), and if it is scaled to 1."""

    mode: str = "mean"
    normalize: bool = False


MEAN = Pooling()


class Encoder:
    """The `Embeds` of a text encoder."""

    def __init__(self, tokens: "Tokens", model: Any, pooling: Pooling) -> None:
        self._tokens = tokens
        self._pooling = pooling
        self.max_tokens = tokens.max_tokens
        self.dimensions = int(model.config.get_text_config().hidden_size)

    def tokens(self, prompt: Prompt, param: str | None = None) -> list[int]:
        """The ids of a text's tokens, special ones included."""
        return self._tokens.of(prompt, param)

    def embed(self, module: torch.nn.Module, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """One vector for each text: float32, [texts, dimensions], on the CPU."""
        encoder: Any = module
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), self._tokens.pad)
        mask = torch.zeros((len(texts), longest), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        with torch.inference_mode():
            ids, mask = ids.to(encoder.device), mask.to(encoder.device)
            vectors = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return pool(vectors.float(), mask, self._pooling).cpu()


def pool(vectors: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[texts, tokens, dimensions] and the tokens that count, padding on the right → one vector."""
    counts = mask.unsqueeze(-1).to(vectors.dtype)
    if pooling.mode == "cls":
        pooled = vectors[:, 0]
    elif pooling.mode == "lasttoken":
        pooled = vectors[torch.arange(len(vectors), device=vectors.device), mask.sum(1) - 1]
    elif pooling.mode == "max":
        pooled = vectors.masked_fill(counts == 0, float("-inf")).amax(1)
    else:
        pooled = (vectors * counts).sum(1) / counts.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1) if pooling.normalize else pooled
