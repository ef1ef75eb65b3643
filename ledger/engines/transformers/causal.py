"""Generating text with transformers' own loop, one prompt at a time.

Tokens are drawn by the Gumbel-max trick (Gumbel 1954; Maddison, Mnih & Teh 2017, section 2): the
largest of the logits plus Gumbel noise is a sample of their softmax. So each generation has a
random generator of its own, which `generate` does not offer, and a seed holds between threads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, TemperatureLogitsWarper, TopPLogitsWarper

from weightledger.ledger.engines.text import Emit, GenerationEnd, Prompt, Sampling
from weightledger.ledger.engines.transformers.stops import LastWords, Stops
from weightledger.ledger.engines.transformers.tokens import Decoder, Tokens

# Logits divided by less than this overflow; by then the choice is the most likely token anyway.
_GREEDY_BELOW = 1e-5

_Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class CausalLM:
    """The `Generates` of a causal language model.

    What the folder's generation_config.json says about end tokens, stop strings and penalties
    holds; its lengths and its ways of drawing do not, since a request says those. The table is in
    `generation_settings`. `last_words` are its stop strings.
    """

    def __init__(self, tokens: Tokens, last_words: Sequence[str] = ()) -> None:
        self._tokens = tokens
        self._last_words = last_words
        self.max_tokens = tokens.max_tokens

    def tokens(self, prompt: Prompt, param: str | None = None) -> list[int]:
        """The ids of a prompt's tokens."""
        return self._tokens.of(prompt, param)

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation up to where the reply starts."""
        return self._tokens.of_chat(messages)

    def generate(
        self, module: torch.nn.Module, prompt: Sequence[int], sampling: Sampling, emit: Emit
    ) -> GenerationEnd:
        """Continue a prompt; returns when a stop, the limit or `emit` ends it."""
        model: Any = module
        ids = torch.tensor([list(prompt)], device=model.device)
        decoder = Decoder(self._tokens.decode, prompt)
        before = self._tokens.decode(prompt) if self._last_words else ""
        last_words = LastWords(self._last_words, before)
        turn = _Turn(decoder, Stops(sampling.stop), _ends(model), last_words, emit)
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            temperature=1.0,
            top_p=1.0,
            pad_token_id=self._tokens.pad,
        )
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=_processors(sampling),
                stopping_criteria=[turn],
            )
        return turn.finish()


class _Turn:
    """A stopping criterion of `generate`: sees each new token, and says when it was the last."""

    def __init__(
        self, decoder: Decoder, stops: Stops, ends: set[int], last_words: LastWords, emit: Emit
    ) -> None:
        self._decoder = decoder
        self._stops = stops
        self._ends = ends
        self._last_words = last_words
        self._emit = emit
        self._tokens = 0
        self._ended = False
        self._over = False

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self._over:
            token = int(ids[0, -1])
            self._tokens += 1
            self._ended = token in self._ends
            piece = "" if self._ended else self._decoder.add(token)
            self._ended |= self._last_words.end_with(piece)
            text = self._stops.add(piece)
            goes_on = self._emit(text)
            self._over = self._ended or self._stops.reached or not goes_on
        return torch.full((1,), self._over, device=ids.device)

    def finish(self) -> GenerationEnd:
        if not self._stops.reached:
            rest = self._stops.add(self._decoder.finish())
            self._emit(rest if self._stops.reached else rest + self._stops.finish())
        stopped = self._ended or self._stops.reached
        return GenerationEnd("stop" if stopped else "length", self._tokens)


def _processors(sampling: Sampling) -> list[_Processor]:
    if sampling.temperature < _GREEDY_BELOW:
        return []
    chosen: list[_Processor] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return [*chosen, _gumbel(sampling.seed)]


def _gumbel(seed: int | None) -> _Processor:
    # On the CPU whatever the model is on, so that a seed means the same there.
    random = torch.Generator()
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)

    def add_noise(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        smallest = torch.finfo(torch.float32).tiny
        drawn = torch.empty(scores.shape).exponential_(generator=random).clamp_(min=smallest)
        return scores - drawn.log_().to(scores.device)

    return add_noise


def _ends(model: Any) -> set[int]:
    given = model.generation_config.eos_token_id
    if given is None:
        return set()
    return {given} if isinstance(given, int) else set(given)
