"""The headers of a request, sorted by name once for all who look something up in them.

The framework goes through all of them at each look, and makes a new object of them in each layer.
The door alone looks up ten names, of which most requests have three.
"""

from collections.abc import Sequence

from starlette.types import Scope

_KEPT_AS = "weightledger.sent_headers"


class SentHeaders:
    """What a request came with, by lower-case name; text is Latin-1, as the framework has it."""

    __slots__ = ("_by_name", "_raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._by_name: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            if name in self._by_name:
                self._by_name[name].append(value)
            else:
                self._by_name[name] = [value]

    @classmethod
    def of(cls, scope: Scope) -> "SentHeaders":
        """Those of a request, the same object each time unless somebody gave it others."""
        raw = scope["headers"]
        kept: SentHeaders | None = scope.get(_KEPT_AS)
        if kept is None or kept._raw is not raw:
            kept = scope[_KEPT_AS] = cls(raw)
        return kept

    def __contains__(self, name: bytes) -> bool:
        return name in self._by_name

    def first(self, name: bytes) -> str | None:
        """The first value of a header, None without one."""
        values = self._by_name.get(name)
        return None if values is None else values[0].decode("latin-1")

    def all(self, name: bytes) -> list[str]:
        """Every value of a header, in the order in which they came."""
        return [value.decode("latin-1") for value in self._by_name.get(name, ())]
