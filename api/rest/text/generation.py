"""One request's generation on a worker thread, read from the event loop as it goes.

The lease is taken on the thread when its turn comes and held until the last token, so everything a
request gets is from one version. Cancelling ends it at the next token.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from weightledger.api.rest.model_selection import Origin, ServedModel
from weightledger.api.rest.workers import Workers
from weightledger.ledger.engines.text import Generates, GenerationEnd, Sampling
from weightledger.ledger.errors import ContextTooLong
from weightledger.ledger.monitoring.samples import Measuring


@dataclass(frozen=True, slots=True)
class Ask:
    """What to generate: one choice a prompt.

    `tokenize` gives the prompts' token ids. `max_tokens` None means `default_tokens`, or as many
    as the context leaves where there is no default either. `param` is the field with the prompts.
    """

    tokenize: Callable[[], Sequence[Sequence[int]]]
    sampling: Sampling
    max_tokens: int | None
    default_tokens: int | None
    param: str


@dataclass(frozen=True, slots=True)
class Started:
    """The first thing a generation says: the state it runs on, and the size of its prompts."""

    origin: Origin
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ChoiceText:
    """Text of one choice."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of one choice."""

    index: int
    finished: GenerationEnd


Said = Started | ChoiceText | Ended


class Generation:
    """Starts at once, or waits in line. Raises Unavailable when the line is full.

    `started` waits for the first thing said, iterating gives the rest; both raise what went wrong
    on the thread. To be made on the event loop. During a trial `key` tells requests apart.
    """

    def __init__(
        self, workers: Workers, generates: Generates, served: ServedModel, ask: Ask, key: str | None
    ) -> None:
        self._workers = workers
        self._generates = generates
        self._served = served
        self._ask = ask
        self._cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[Said | None] = asyncio.Queue()
        self._measuring = Measuring(key, time.perf_counter())
        self._future: Future[None] = workers.submit(self._work)
        self._future.add_done_callback(lambda _: self._say(None))

    def cancel(self) -> None:
        """End it: at once if it is still in line, else at the next token."""
        self._cancelled.set()
        self._future.cancel()

    async def started(self) -> Started:
        """Wait for its turn."""
        said = await self._next()
        assert isinstance(said, Started), "a generation starts by saying what it runs on"
        return said

    async def __aiter__(self) -> AsyncIterator[ChoiceText | Ended]:
        while (said := await self._next()) is not None:
            assert not isinstance(said, Started)
            yield said

    async def _next(self) -> Said | None:
        said = await self._said.get()
        if said is None:
            self._future.result()
        return said

    # On the thread

    def _work(self) -> None:
        prompts = self._ask.tokenize()
        limits = [self._limit(prompt) for prompt in prompts]
        with self._served.lease(self._measuring) as live:
            origin = Origin(live.seq, live.digest)
            tokens = 0
            self._say(Started(origin, sum(len(prompt) for prompt in prompts)))
            for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
                sampling = replace(self._ask.sampling, max_tokens=limit)

                def emit(text: str, index: int = index) -> bool:
                    self._workers.check()
                    if text:
                        self._say(ChoiceText(index, text))
                    return not self._cancelled.is_set()

                finished = self._generates.generate(live.module, prompt, sampling, emit)
                if self._cancelled.is_set():
                    self._measuring.counts = False
                    return
                tokens += finished.tokens
                self._say(Ended(index, finished))
            self._measuring.items = tokens

    def _limit(self, prompt: Sequence[int]) -> int:
        """How many tokens may follow the prompt; ContextTooLong if not as many as asked for."""
        context = self._generates.max_tokens
        left, wanted = context - len(prompt), self._ask.max_tokens
        if left < (wanted or 1):
            raise ContextTooLong(
                f"This model's maximum context length is {context} tokens. However, you requested "
                f"{len(prompt) + (wanted or 1)} tokens ({len(prompt)} in the {self._ask.param}, "
                f"{wanted or 1} in the completion). Please reduce the length of either.",
                param=self._ask.param,
            )
        return wanted or min(left, self._ask.default_tokens or left)

    def _say(self, said: Said | None) -> None:
        # The loop is gone when the server stops; then nobody listens any more.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._said.put_nowait, said)
