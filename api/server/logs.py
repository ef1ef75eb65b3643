"""Server logs on stderr: one line an entry, UTC times, as text or JSON, and no secret in either.

On a terminal an entry is short, and one that only informs is cut where the terminal's line ends.

Loggers are named by their modules, so `logging.getLogger("weightledger")` is all of them and
`weightledger.ledger.manager` those of one.
"""

import json
import logging
import os
import sys
import time

from rich.cells import cell_len, set_cell_size

from weightledger.api.plain_text import plain
from weightledger.api.server.settings import Settings
from weightledger.ledger.secrets import mask

# What an entry is about, beside its message: `logger.info(…, extra={…})`.
FACTS = ("model", "event", "kind", "seq", "actor", "request_id", "code", "status", "route")

_CHATTY = ("alembic", "httpx2")


def configure(settings: Settings) -> None:
    """Send records of the settings' level and above to stderr, in their format."""
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(TerminalLines() if sys.stderr.isatty() else Lines())
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


class TerminalLines(logging.Formatter):
    """`10:00:00Z INFO manager: …`, on one line of the terminal; warnings and errors are whole."""

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(part)s: %(message)s", "%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        record.part = record.name.rpartition(".")[2]
        line = plain(mask(super().format(record)))
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        if record.levelno >= logging.WARNING or width == 0 or cell_len(line) <= width:
            return line
        return set_cell_size(line, width - 1) + "…"


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
