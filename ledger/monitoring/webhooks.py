"""Webhooks: what happens to a model, told to one address, signed as Standard Webhooks has it.

A message is queued by the thread that wrote the event and sent by another, so that no write waits
for the address. What it does not take is sent again, later and later; what it has not taken after
`_TRIES` is dropped with a line of the log, and so is what does not fit into the queue.

https://www.standardwebhooks.com: `webhook-id` is the same each time a message is sent,
`webhook-timestamp` and `webhook-signature` (HMAC-SHA256 over id, time and body) are of the sending.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import orjson

from weightledger.ledger import http
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import Event
from weightledger.ledger.monitoring.journal import is_alert
from weightledger.ledger.writing.showing import Committed

logger = logging.getLogger("weightledger.ledger.manager")

SECRET_PREFIX = "whsec_"
MOST_WAITING = 1000
_TIMEOUT_S = 10.0
_MOST_ANSWERED = 64 * 1024
_PAUSES_S = (1, 2, 5, 15, 60, 300, 900, 3600)
_TRIES = len(_PAUSES_S) + 1
_GONE = 410

# What never leaves this machine: who and why can be redacted here, and nowhere else.
_PRIVATE = frozenset({"metadata", "tensors", "updates", "rules"})


@dataclass(slots=True, eq=False)
class WebhookMessage:
    """One message: its id, its body as it is signed, and when and how often it was tried."""

    id: str
    body: bytes
    due: float = 0.0
    tries: int = 0


def key_of(secret: str) -> bytes:
    """The key that a secret (`whsec_` and base64 of 24 to 64 bytes) stands for.

    InvalidRequest, without the secret, for one that is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise InvalidRequest(
            f"the webhook secret must be {SECRET_PREFIX} and 24 to 64 bytes in base64",
            param="webhook_secret",
        )
    return key


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of one sending."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


class Webhooks:
    """Tells one address what happens to a model. Safe to use from any thread.

    `secret` is as for `key_of`. InvalidRequest for what is no address or no secret.
    """

    def __init__(
        self, url: str, secret: str, *, pause: Callable[[int], float] | None = None
    ) -> None:
        self._key = key_of(secret)
        self._url = url
        self._client = http.client(
            url, param="webhook_url", timeout=_TIMEOUT_S, follow_redirects=False
        )
        self._pause = pause or (lambda tries: float(_PAUSES_S[tries - 1]))
        self._waiting: deque[WebhookMessage] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name="ledger-webhooks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sending; what waits is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._client.close()

    def after(self, committed: Committed) -> None:
        """Tell of an event, on the writer's thread."""
        event = committed.event
        facts = {name: fact for name, fact in event.body.items() if name not in _PRIVATE}
        data = {
            "model": event.model,
            "id": event.name,
            "seq": event.seq,
            "kind": event.kind,
            "alert": is_alert(event),
            "state_seq": event.state_seq,
            "digest": event.state_after.hex(),
            "facts": facts,
        }
        self.tell(f"weightledger.{event.kind}", data, _moment(event), _id_of(event))

    def tell(self, kind: str, data: dict[str, Any], moment: datetime, message_id: str) -> None:
        """Queue a message; the oldest that wait give way when there are too many."""
        content = {"type": kind, "timestamp": moment.isoformat(), "data": data}
        message = WebhookMessage(message_id, orjson.dumps(content))
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
                if self._dropped in (1, MOST_WAITING):
                    logger.error("webhook messages are dropped: %d wait", MOST_WAITING)
            self._waiting.append(message)
            self._changed.notify()

    # The thread

    def _work(self) -> None:
        while (message := self._next()) is not None:
            message.tries += 1
            problem = self._sent(message)
            if problem is None:
                continue
            if message.tries >= _TRIES:
                logger.error(
                    "webhook %s was not taken in %d tries and is dropped: %s",
                    message.id,
                    message.tries,
                    problem,
                )
                continue
            logger.warning("webhook %s was not taken, will try again: %s", message.id, problem)
            message.due = time.monotonic() + self._pause(message.tries)
            with self._changed:
                self._waiting.append(message)

    def _next(self) -> WebhookMessage | None:
        """The next message that is due, once there is one; None when this is closed."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                for message in self._waiting:
                    if message.due <= now:
                        self._waiting.remove(message)
                        return message
                soonest = min((one.due for one in self._waiting), default=None)
                self._changed.wait(None if soonest is None else soonest - now)
            return None

    def _sent(self, message: WebhookMessage) -> str | None:
        """Send once; why it was not taken, or None when it was."""
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, message.id, timestamp, message.body),
        }
        try:
            with self._client.stream(
                "POST", self._url, content=message.body, headers=headers
            ) as answer:
                # The connection is kept where the answer is over; what it says is nobody's.
                http.body_of(answer, _MOST_ANSWERED, time.monotonic() + _TIMEOUT_S)
        except (httpx2.HTTPError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        if answer.is_success:
            return None
        if answer.status_code == _GONE:  # asked to stop: not again, for this message
            message.tries = _TRIES
        where = ", a redirect, which is not followed" if answer.is_redirect else ""
        return f"answered {answer.status_code}{where}"


def _id_of(event: Event) -> str:
    """The same for the same event, whoever sends it."""
    return f"msg_{event.hash.hex()[:32]}"


def _moment(event: Event) -> datetime:
    return datetime.fromtimestamp(event.timestamp, UTC)
