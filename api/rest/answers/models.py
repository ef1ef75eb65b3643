"""Models, their parameters, and what they give."""

from typing import Any, Literal

from pydantic import BaseModel

from weightledger.api.rest.answers import Exact


class Parameter(Exact):
    """One tensor of the model."""

    name: str
    object: Literal["parameter"]
    dtype: str
    shape: list[int]
    digest: str
    update_count: int


class ParameterList(Exact):
    """A page of parameters, by name."""

    object: Literal["list"]
    data: list[Parameter]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Model(BaseModel):
    """The served model, or one of its adapters (then with `parent`)."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The served model and its adapters."""

    object: Literal["list"]
    data: list[Model]


class Predictions(Exact):
    """What the model gave for a batch: nested lists."""

    predictions: Any
