"""Request bodies of the OpenAI routes.

What this server cannot do is refused, never ignored: fields it does not have, and other values than
the neutral one of fields that it has for that one only. `user` and `metadata` do nothing at OpenAI
either, except label.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
)

_SEED = 1 << 63


def _texts(value: Any) -> list[str | list[int]]:
    """One or many texts, each as text or token ids, as a list of them."""
    many = value if isinstance(value, list) and not _is_tokens(value) else [value]
    if not many or not all(text and (isinstance(text, str) or _is_tokens(text)) for text in many):
        raise ValueError(
            "must be a text, a list of texts, a list of token ids or a list of such lists, and "
            "none of them empty"
        )
    return many


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def named(field: str, texts: Sequence[Any], number: int) -> str:
    """How errors name one of a field's texts: by its place, where there are several."""
    return field if len(texts) == 1 else f"{field}.{number}"


_TOKENS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_TEXT = {"anyOf": [{"type": "string", "minLength": 1}, _TOKENS]}
Texts = Annotated[
    Any,
    AfterValidator(_texts),
    WithJsonSchema(
        {
            "anyOf": [*_TEXT["anyOf"], {"type": "array", "items": _TEXT, "minItems": 1}],
            "description": "Text, a list of texts, or either as token ids.",
        }
    ),
]

# Values that ask for nothing beyond what is done anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "store": (False,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    user: str | None = None


class EmbeddingsBody(_Body):
    """POST /v1/embeddings"""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


def _only_false(value: bool) -> bool:
    """For what is not done here: Literal[False] would take 0 as well."""
    if value:
        raise ValueError("only false is supported here")
    return value


class StreamOptions(BaseModel):
    """`stream_options`"""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: Annotated[bool, AfterValidator(_only_false)] = False


class _GenerationBody(_Body):
    metadata: dict[str, Any] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_SEED, lt=_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Any = None
    logprobs: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None

    @field_validator(*_NEUTRAL, check_fields=False, mode="before")
    @classmethod
    def _only_neutral(cls, value: Any, info: Any) -> Any:
        allowed = _NEUTRAL[info.field_name]
        if value is None or any(value == one and type(value) is type(one) for one in allowed):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool) and value in allowed:
            return value
        shown = " or ".join(repr(one) for one in allowed)
        raise ValueError(f"only {shown} is supported here")


class CompletionBody(_GenerationBody):
    """POST /v1/completions"""

    prompt: Texts
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: str


# What a message may have beside its text. Clients send a reply back as they got it, with these
# fields there but empty; `parsed` is what the openai client adds by itself.
_EMPTY_ONLY = {
    "refusal": "refusals are text like any other here",
    "tool_calls": "this server calls no tools",
    "tool_call_id": "this server calls no tools",
    "function_call": "this server calls no functions",
    "audio": "this server takes and gives text",
    "annotations": "this server takes and gives text",
    "reasoning": "reasoning is no part of a conversation here",
    "reasoning_content": "reasoning is no part of a conversation here",
    "parsed": "this server parses no replies",
}


class Message(BaseModel):
    """One message of a conversation; a field that is null is one that is not there."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: str
    content: str | list[TextPart]
    name: str | None = None
    refusal: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    annotations: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    parsed: Any = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise ValueError(f"a part of type {kind!r:.40} is not supported here, only 'text'")
        return value

    @field_validator(*_EMPTY_ONLY, mode="before")
    @classmethod
    def _nothing(cls, value: Any, info: Any) -> None:
        if value not in (None, [], {}, ""):
            raise ValueError(f"must be null or empty: {_EMPTY_ONLY[info.field_name]}")

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(_GenerationBody):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Any = None
    store: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None


EMBEDDINGS: TypeAdapter[EmbeddingsBody] = TypeAdapter(EmbeddingsBody)
COMPLETION: TypeAdapter[CompletionBody] = TypeAdapter(CompletionBody)
CHAT: TypeAdapter[ChatBody] = TypeAdapter(ChatBody)
