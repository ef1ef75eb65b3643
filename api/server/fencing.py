"""Whether this server shows the head of the log: said when that changes, and not in between."""

import logging
import uuid
from datetime import UTC, datetime

from weightledger.ledger.monitoring.webhooks import Webhooks

logger = logging.getLogger("weightledger.ledger.manager")


class Fence:
    """Tells of a server that is fenced, and of one that is so no more."""

    def __init__(self, model: str, hooks: Webhooks | None) -> None:
        self._model = model
        self._hooks = hooks
        self._fenced = False

    def look(self, fault: str | None) -> None:
        """Note why the live weights are not known to be the head of the log, or None."""
        if (fault is not None) == self._fenced:
            return
        self._fenced = fault is not None
        if fault is not None:
            logger.error("%s: fenced: %s", self._model, fault)
        else:
            logger.warning("%s: fenced no more", self._model)
        if self._hooks is not None:
            kind = "weightledger.fenced" if fault is not None else "weightledger.unfenced"
            data = {"model": self._model, "alert": fault is not None, "reason": fault}
            self._hooks.tell(kind, data, datetime.now(UTC), f"msg_{uuid.uuid4().hex}")
