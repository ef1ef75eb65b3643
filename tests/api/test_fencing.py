"""A fenced server says so once, and once that it is so no more."""

import logging
from datetime import datetime
from typing import Any

import pytest

from weightledger.api.server.fencing import Fence


class Told:
    """What webhooks were told."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str, bool]] = []

    def tell(self, kind: str, data: dict[str, Any], moment: datetime, message_id: str) -> None:
        assert moment.tzinfo is not None and message_id.startswith("msg_")
        self.kinds.append((kind, data["alert"]))


def test_a_change_is_said_and_what_lasts_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = Told()
    fence = Fence("m", told)  # type: ignore[arg-type]
    for fault in (None, None, "vLLM is gone", "vLLM is gone", "vLLM is gone still", None, None):
        fence.look(fault)
    assert told.kinds == [("weightledger.fenced", True), ("weightledger.unfenced", False)]
    assert [record.message for record in caplog.records] == [
        "m: fenced: vLLM is gone",
        "m: fenced no more",
    ]
