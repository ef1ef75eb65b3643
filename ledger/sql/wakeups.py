"""Waking up whoever waits for new events, in whatever process.

On PostgreSQL writers tell of what they have committed by NOTIFY, and waiting is listening. It is
sent after the commit, on a connection of its own, and once for what was committed meanwhile: NOTIFY
within an append would have all writers of the server queue for one lock. A pooler, a standby or a
lost connection may swallow it, which costs one look: every wait looks by itself as well, often
where nobody is heard. SQLite says itself whether its file has changed.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")

Wake = Literal["auto", "listen", "poll"]
"""How one waits: by listening where that works, by listening, or by looking again and again."""

POLL_S = 0.05
"""Seconds between two looks where nobody is listened to."""

_LISTENED_S = 1.0  # between two looks while one listens: what a lost NOTIFY costs


class Ending(threading.Event):
    """Whoever waits with it goes on at once when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Callable[[], None]] = []

    def set(self) -> None:
        """Set it, and wake who waits."""
        super().set()
        for wake in tuple(self._waiting):
            wake()

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Who looks whether it is set, and waits then, is woken by this."""
        self._waiting.append(wake)
        try:
            yield
        finally:
            self._waiting.remove(wake)


class Ear(Protocol):
    """Listens for what other processes tell."""

    @property
    def hears(self) -> bool:
        """Whether what is told arrives here, as far as is known."""

    def close(self) -> None:
        """Stop listening."""


class Voice(Protocol):
    """Tells other processes of commits."""

    def tell(self, model_id: int) -> None:
        """A model has news. Never waits and never fails."""

    def close(self) -> None:
        """Tell what is not told yet, and stop."""


class Wakeups:
    """Who waits in this process for the logs of one database, and how they hear of news."""

    def __init__(
        self,
        voice: Callable[[], Voice] | None,
        ear: Callable[[Callable[[int | None], None], bool], Ear] | None,
    ) -> None:
        self._make_voice, self._make_ear = voice, ear
        self._voice: Voice | None = None
        self._ear: Ear | None = None
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._waiters = 0
        self._told: dict[int | None, int] = {}
        self._closed = False

    def committed(self, model_id: int) -> None:
        """What is new of a model is durable: tell everybody. Never waits and never fails."""
        self._heard(model_id)
        if self._make_voice is None or self._closed:
            return
        if self._voice is None:
            with self._starting:
                if self._voice is None and not self._closed:
                    self._voice = self._make_voice()
        if self._voice is not None:
            self._voice.tell(model_id)

    def wait(
        self,
        model_id: int,
        look: Callable[[], T],
        changed: Callable[[], bool] | None,
        is_news: Callable[[T], bool],
        timeout_s: float,
        wake: Wake,
        ended: Ending | None = None,
    ) -> T:
        """Wait until there is news of a model or it has ended, at most so long; gives what was
        seen last.

        `look` sees, at the cost of one index entry; `changed`, where there is such, says for less
        that there is nothing to look at.
        """
        ended = ended or Ending()
        with ended.waking(self._wake):
            deadline = time.monotonic() + timeout_s
            ear = self._listening(wake)
            if changed is not None:
                changed()  # says what has changed since it was asked last
            told = self._times_told(model_id)
            last = look()
            while True:
                remaining = deadline - time.monotonic()
                if is_news(last) or remaining <= 0 or self._closed or ended.is_set():
                    return last
                pause_s = _LISTENED_S if ear is not None and ear.hears else POLL_S
                with self._news:
                    if self._times_told(model_id) == told and not (self._closed or ended.is_set()):
                        self._waiters += 1
                        try:
                            self._news.wait(min(pause_s, remaining))
                        finally:
                            self._waiters -= 1
                told = self._times_told(model_id)
                if changed is None or changed():
                    last = look()

    def close(self) -> None:
        """Let everybody go on who waits, and tell what is not told yet."""
        self._closed = True
        self._wake()
        with self._starting:
            for one in (self._voice, self._ear):
                if one is not None:
                    one.close()

    def _wake(self) -> None:
        """Have everybody who waits look whether it is over."""
        with self._news:
            self._news.notify_all()

    def _listening(self, wake: Wake) -> Ear | None:
        if wake == "poll" or self._make_ear is None or self._closed:
            return None
        if self._ear is None:
            with self._starting:
                if self._ear is None and not self._closed:
                    self._ear = self._make_ear(self._heard, wake == "auto")
        return self._ear

    def _times_told(self, model_id: int) -> tuple[int, int]:
        return self._told.get(model_id, 0), self._told.get(None, 0)

    def _heard(self, model_id: int | None) -> None:
        """A model has news; None: any may have."""
        with self._lock:
            self._told[model_id] = self._told.get(model_id, 0) + 1
            if self._waiters:  # waking up nobody would be a good part of telling
                self._news.notify_all()
