"""Tables of hooks that say when one is added or taken off.

Versions share the submodules that did not change, so a hook that a reader puts on one of them would
stay in every later version.
"""

import weakref
from collections import OrderedDict
from typing import Any, TypeAlias

TABLES = frozenset(
    {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
)
"""The tables that torch looks at when it runs a module; a hook is in one of them at least."""


Owner: TypeAlias = weakref.ref[Any]
"""Whoever is told of changes, by its method `noticed(number, table)`, while it lives."""


class HookTable(OrderedDict[int, Any]):
    """One module's hooks of one kind; an OrderedDict to everybody but `owner`."""

    __slots__ = ("number", "owner")

    owner: Owner | None
    number: int

    def watched(self, owner: Owner, number: int) -> "HookTable":
        """From now on `owner` is told of changes."""
        self.owner, self.number = owner, number
        return self

    def __setitem__(self, key: int, hook: Any) -> None:
        super().__setitem__(key, hook)
        self._tell()

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        self._tell()

    def clear(self) -> None:
        """Take all off."""
        super().clear()
        self._tell()

    def copy(self) -> "OrderedDict[int, Any]":  # type: ignore[override]
        """The same hooks in a table that tells nobody."""
        return OrderedDict(self)

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)

    def _tell(self) -> None:
        ref = getattr(self, "owner", None)
        owner = ref() if ref is not None else None
        if owner is not None:
            owner.noticed(self.number, self)
