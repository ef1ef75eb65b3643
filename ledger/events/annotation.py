"""The words beside an event, which may have to be forgotten one day: who, why, and what for."""

import hashlib
import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Annotation:
    """Free text beside the event; a header holds only `digest()` of each value."""

    actor: str | None = None
    reason: str | None = None
    metadata: str | None = None  # canonical JSON text
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def __bool__(self) -> bool:
        return self.actor is not None or self.reason is not None or self.metadata is not None

    def digest(self, name: str) -> str | None:
        """Hex SHA-256 of salt, field name, NUL and the value's UTF-8; None without a value."""
        value: str | None = getattr(self, name)
        return None if value is None else annotation_digest(self.salt, name, value)


NO_WORDS = Annotation(salt=bytes(16))
"""Of no words there are no digests, so there is nothing to salt."""


def annotation_digest(salt: bytes, name: str, value: str) -> str:
    """What a header holds of an annotation's field: hex SHA-256 of salt, name, NUL and value."""
    return hashlib.sha256(salt + f"{name}\0{value}".encode()).hexdigest()
