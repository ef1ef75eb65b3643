"""What a request to a text model came to, for whoever follows requests (`api.server.tracing`)."""

from dataclasses import dataclass
from typing import Literal

from fastapi import Request

Operation = Literal["chat", "text_completion", "embeddings"]
"""By OpenTelemetry's conventions for generative AI."""


@dataclass(slots=True)
class Inferred:
    """The model that was asked for and the one that answered; tokens, None while unknown."""

    operation: Operation
    asked: str
    answered: str
    input_tokens: int | None = None
    output_tokens: int | None = None


def inferring(request: Request, operation: Operation, asked: str | None, model: str) -> Inferred:
    """Note what a request is about; what it came to is filled in by and by."""
    one = Inferred(operation, asked or model, model)
    request.state.inferred = one
    return one
