"""Embedding text: an encoder's vectors of the tokens, pooled into one.

Pooling as in Reimers & Gurevych, Sentence-BERT (2019), section 3, with the names that
sentence-transformers' files use, and to its bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from weightledger.ledger.engines.text import Prompt
from weightledger.ledger.engines.transformers.trial import inputs

if TYPE_CHECKING:
    from weightledger.ledger.engines.transformers.tokens import Tokens

MODES = ("mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True, slots=True)
class Pooling:
    """How one vector is made of the tokens', and if it is scaled to length 1.

    `mode` is one of MODES, or several whose vectors stand one after another. `dimensions` are the
    first so many that are kept of it, None for all.
    """

    mode: str | tuple[str, ...] = "mean"
    normalize: bool = False
    dimensions: int | None = None


MEAN = Pooling()


class Encoder:
    """The `Embeds` of a text encoder.

    `prompt` goes before each text. `padded` says that texts of several lengths may go through the
    model together, filled up with padding; it is false for models that take padding for text.
    """

    def __init__(
        self,
        tokens: "Tokens",
        pooling: Pooling,
        *,
        width: int,
        prompt: str = "",
        padded: bool = True,
    ) -> None:
        self._tokens = tokens
        self._pooling = pooling
        self._prompt = prompt
        self._padded = padded
        self.max_tokens = tokens.max_tokens
        modes = 1 if isinstance(pooling.mode, str) else len(pooling.mode)
        self.dimensions = min(width * modes, pooling.dimensions or width * modes)

    def tokens(self, prompt: Prompt, param: str | None = None) -> list[int]:
        """The ids of a text's tokens, special ones and those of the prompt included."""
        text = self._prompt + prompt if isinstance(prompt, str) else prompt
        return self._tokens.of(text, param)

    def embed(self, module: torch.nn.Module, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """One vector for each text: float32, [texts, dimensions], on the CPU."""
        vectors = torch.empty((len(texts), self.dimensions))
        for rows in self._together(texts):
            vectors[rows] = self._embed(module, [texts[row] for row in rows])
        return vectors

    def _embed(self, module: Any, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        with torch.inference_mode():
            hidden = module(**inputs(module, texts, self._tokens.pad)).last_hidden_state
            lengths = torch.tensor([len(text) for text in texts], device=hidden.device)
            mask = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]).long()
            return pool(hidden, mask, self._pooling).float().cpu()

    def _together(self, texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Rows of texts that go through the model at once."""
        if self._padded:
            yield list(range(len(texts)))
            return
        by_length: dict[int, list[int]] = {}
        for row, text in enumerate(texts):
            by_length.setdefault(len(text), []).append(row)
        yield from by_length.values()


def pool(vectors: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[texts, tokens, width] and the tokens that count, padding on the right → [texts, dimensions].

    In the dtype of the vectors; half types are summed in float32.
    """
    modes = (pooling.mode,) if isinstance(pooling.mode, str) else pooling.mode
    pooled = torch.cat([_pooled(vectors, mask, mode) for mode in modes], dim=-1)
    if pooling.normalize:
        pooled = torch.nn.functional.normalize(pooled, p=2, dim=-1)
    return pooled[:, : pooling.dimensions]


def _pooled(vectors: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    dtype = vectors.dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    counts = mask.unsqueeze(-1).to(dtype)
    if mode == "cls":
        return vectors[:, 0]
    if mode == "lasttoken":
        return vectors[torch.arange(len(vectors), device=vectors.device), mask.sum(1) - 1]
    if mode == "max":
        return vectors.masked_fill(counts == 0, float("-inf")).amax(1)
    if mode == "weightedmean":
        places = torch.arange(1, vectors.shape[1] + 1, device=vectors.device, dtype=wide)
        weights = mask.unsqueeze(-1).to(wide) * places.view(1, -1, 1)
        return ((vectors * weights).sum(1) / weights.sum(1)).to(dtype)
    total = (vectors * counts).sum(1, dtype=wide)
    number = counts.sum(1, dtype=wide)
    return (total / (number if mode == "mean" else number.sqrt())).to(dtype)
