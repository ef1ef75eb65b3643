"""Server logs on stderr: one line an entry, UTC times, as text or JSON, and no secret in either.

Loggers are named by their modules, so `logging.getLogger("weightledger")` is all of them and
`weightledger.ledger.manager` those of one.
"""

import json
import logging
import time

from weightledger.api.plain_text import plain
from weightledger.api.server.settings import Settings
from weightledger.ledger.secrets import mask

# What an entry is about, beside its message: `logger.info(…, extra={…})`.
FACTS = ("model", "event", "kind", "seq", "actor", "request_id", "code", "status", "route")

_CHATTY = ("alembic", "httpx2")


def configure(settings: Settings) -> None:
    """Send records of the settings' level and above to stderr, in their format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if settings.log_format == "json" else Lines())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


class Lines(logging.Formatter):
    """`2026-11-22T10:00:00.123Z INFO weightledger.ledger.manager: …`, whatever the text holds."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return plain(mask(super().format(record)))


class JsonLines(logging.Formatter):
    """An object a line: `time`, `level`, `logger`, `message`, those of FACTS, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{moment}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": mask(record.getMessage()),
        }
        facts = {name: getattr(record, name) for name in FACTS if hasattr(record, name)}
        entry.update({name: fact for name, fact in facts.items() if fact is not None})
        if record.exc_info:
            entry["exception"] = mask(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)
