"""Evaluators of text models: perplexity of a text, and similarity of pairs of texts."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightledger.ledger.engines.text import Embeds, Generates
from weightledger.ledger.errors import ContextTooLong, InvalidRequest
from weightledger.ledger.monitoring.evaluation import Scores

BATCH = 32


class Perplexity:
    """`perplexity` of a text: exp of the mean loss of a token, in nats.

    Each line is one item, with minus the mean loss of its tokens; one that is longer than the
    model's context is several. Of a line's first token nothing is said, since nothing is before it.
    """

    def __init__(self, pieces: Sequence[Sequence[int]]) -> None:
        self._pieces = pieces

    def __call__(self, module: torch.nn.Module) -> Scores:
        model: Any = module
        losses = []
        with torch.inference_mode():
            for piece in self._pieces:
                ids = torch.tensor([piece], device=model.device)
                logits = model(ids).logits[0, :-1].double()
                chosen = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])
                losses.append(-chosen.squeeze(1).cpu())
        mean = float(torch.cat(losses).mean())
        items = torch.stack([-one.mean() for one in losses])
        return Scores(
            {"perplexity": math.exp(mean) if mean < 700 else math.inf}, {"perplexity": items}
        )


class Similarity:
    """`similarity`: Spearman's rank correlation of cosines with known similarities of pairs.

    A pair is one item, with minus the squared difference of its two ranks, which the correlation is
    made of.
    """

    def __init__(
        self,
        embeds: Embeds,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        known: torch.Tensor,
    ) -> None:
        self._embeds = embeds
        self._texts = [text for pair in pairs for text in pair]
        self._ranks = _ranks(known)

    def __call__(self, module: torch.nn.Module) -> Scores:
        vectors = torch.cat(
            [
                self._embeds.embed(module, self._texts[at : at + BATCH]).double()
                for at in range(0, len(self._texts), BATCH)
            ]
        )
        cosines = torch.cosine_similarity(vectors[0::2], vectors[1::2])
        if not bool(cosines.isfinite().all()):
            raise InvalidRequest("the embeddings are not finite")
        ranks = _ranks(cosines)
        correlation = torch.corrcoef(torch.stack([ranks, self._ranks]))[0, 1]
        return Scores(
            {"similarity": float(correlation)}, {"similarity": -(ranks - self._ranks).square()}
        )


def perplexity(file: Path, generates: Generates) -> Perplexity:
    """`perplexity:FILE`, a text file in UTF-8."""
    pieces = [
        piece
        for line in _text(file).splitlines()
        if line.strip()
        for piece in _fitting(line, generates)
        if len(piece) > 1
    ]
    if not pieces:
        raise InvalidRequest(f"{file} has no line of two tokens or more")
    return Perplexity(pieces)


def similarity(file: Path, embeds: Embeds) -> Similarity:
    """`similarity:FILE`, lines of JSON with `a`, `b` and `score`, at least three."""
    pairs, known = [], []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            pairs.append((embeds.tokens(one["a"]), embeds.tokens(one["b"])))
            known.append(float(one["score"]))
        except (ValueError, KeyError, TypeError, InvalidRequest) as error:
            raise InvalidRequest(
                f'{file}, line {number}: expected {{"a": TEXT, "b": TEXT, "score": NUMBER}}:'
                f" {error}"
            ) from None
    if len(pairs) < 3 or len(set(known)) < 2:
        raise InvalidRequest(f"{file} needs three pairs or more, with scores that differ")
    return Similarity(embeds, pairs, torch.tensor(known, dtype=torch.float64))


def _fitting(text: str, generates: Generates) -> Iterator[list[int]]:
    """The ids of a text, cut between words until each piece fits the model's context."""
    try:
        yield generates.tokens(text)
    except ContextTooLong:
        words = text.split()
        if len(words) < 2:
            raise
        yield from _fitting(" ".join(words[: len(words) // 2]), generates)
        yield from _fitting(" ".join(words[len(words) // 2 :]), generates)


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0, float64; those of equal values are their mean."""
    _, group, counts = np.unique(values.numpy(), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return torch.from_numpy(((2 * ends - counts - 1) / 2)[group])


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}") from None
