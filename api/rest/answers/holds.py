"""Legal holds of versions."""

from typing import Literal

from pydantic import Field

from weightledger.api.rest.answers import Exact


class Hold(Exact):
    """A legal hold of a version, that stands or was released."""

    id: str = Field(examples=["hold_0"])
    object: Literal["hold"]
    version_id: str = Field(examples=["v1_1795397018"])
    node: int = Field(description="The seq of the state that is held.")
    digest: str
    placed_by: str | None
    placed_at: str
    reason: str | None
    released_by: str | None
    released_at: str | None = Field(description="Null while it stands.")
    release_reason: str | None


class HoldList(Exact):
    """Every hold that there is or was, newest first."""

    object: Literal["list"]
    data: list[Hold]
