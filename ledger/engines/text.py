"""What an engine may offer beyond holding weights: embedding text, and generating it.

An engine that can do it has an attribute `embeds` or `generates` that is not None. Both work on the
module of a lease, so that one call or one generation runs on one version from start to end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from weightledger.ledger.engines import Engine

Prompt = str | Sequence[int]
"""Text, or the ids of its tokens."""

Emit = Callable[[str], bool]
"""Takes the next piece of text, which may be empty; False ends the generation."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to end.

    max_tokens: at most this many new tokens.
    temperature: 0 takes the most likely token; otherwise logits are divided by it.
    top_p: only the most likely tokens that make up this share of probability are drawn from.
    seed: the same seed, prompt and weights give the same text; None draws anew each time.
    stop: the text ends before the first of these that is complete.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """Why a generation ended, and the number of tokens it took (those not shown included)."""

    reason: Literal["stop", "length"]
    tokens: int


class Embeds(Protocol):
    """Turns text into vectors."""

    @property
    def max_tokens(self) -> int:
        """Tokens of one text, special ones included."""

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    def tokens(self, prompt: Prompt, param: str | None = None) -> list[int]:
        """The ids of a text's tokens, checked.

        Raises InvalidRequest, or ContextTooLong; `param` is the field they name.
        """

    def embed(self, module: torch.nn.Module, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """One vector for each tokenised text: float32, [texts, dimensions], on the CPU."""


class Generates(Protocol):
    """Continues text."""

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt and its continuation together."""

    def tokens(self, prompt: Prompt, param: str | None = None) -> list[int]:
        """The ids of a prompt's tokens, checked, as those of `Embeds.tokens`."""

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation (`role` and `content`) up to where the reply starts."""

    def generate(
        self, module: torch.nn.Module, prompt: Sequence[int], sampling: Sampling, emit: Emit
    ) -> GenerationEnd:
        """Continue a tokenised prompt, handing each piece of text to `emit` as it comes."""


def embeds(engine: Engine) -> Embeds | None:
    """The engine's way to embed text, if it has one."""
    return getattr(engine, "embeds", None)


def generates(engine: Engine) -> Generates | None:
    """The engine's way to generate text, if it has one."""
    return getattr(engine, "generates", None)
