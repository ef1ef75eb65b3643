"""OpenAI's reply objects: whole ones and the chunks of a stream."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightledger.api.rest.text.generation import ChoiceText, Ended


@dataclass(frozen=True, slots=True)
class Form:
    """The one thing that differs between the two routes: how a choice's text is wrapped."""

    prefix: str
    object: str
    chunk_object: str
    chat: bool

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        """A whole choice."""
        held = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.chat
            else {"text": text}
        )
        return {"index": index, **held, "logprobs": None, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its text, if anything."""
        if not self.chat:
            return None
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, said: ChoiceText | Ended) -> dict[str, Any]:
        """A stream's next part of a choice, or its end."""
        reason = said.finished.reason if isinstance(said, Ended) else None
        text = said.text if isinstance(said, ChoiceText) else ""
        held: dict[str, Any] = {"text": text}
        if self.chat:
            held = {"delta": {"content": text} if isinstance(said, ChoiceText) else {}}
        return {"index": said.index, **held, "logprobs": None, "finish_reason": reason}


TEXT = Form("cmpl", "text_completion", "text_completion", chat=False)
CHAT = Form("chatcmpl", "chat.completion", "chat.completion.chunk", chat=True)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that every object of one reply shares."""

    id: str
    created: int
    model: str
    fingerprint: str

    @classmethod
    def new(cls, form: Form, model: str, fingerprint: str) -> "Envelope":
        """With a fresh id and the time now."""
        return cls(f"{form.prefix}-{uuid.uuid4().hex}", int(time.time()), model, fingerprint)

    def around(
        self, object_: str, choices: Sequence[Mapping[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """A reply or a chunk with these choices."""
        return {
            "id": self.id,
            "object": object_,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            **more,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens in, tokens out, both."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
