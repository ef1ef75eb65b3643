"""The replies of the OpenAI routes, for the document; the routes give plain dicts."""

from typing import Any, Literal

from pydantic import BaseModel


class Usage(BaseModel):
    """Tokens in and out."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    finish_reason: str | None


class CompletionReply(BaseModel):
    """OpenAI's `text_completion`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(BaseModel):
    """What the model answers."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: str | None


class ChatReply(BaseModel):
    """OpenAI's `chat.completion`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Embedding(BaseModel):
    """One vector: numbers, or base64 of float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsReply(BaseModel):
    """OpenAI's list of vectors."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


STREAMED: dict[str, Any] = {"text/event-stream": {}}
"""What a reply with `"stream": true` is beside: chunks as server-sent events."""
