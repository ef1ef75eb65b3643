"""What installed packages bring, by entry point: each is loaded when its id is asked for.

An entry point's name is the id of what it brings ("decay.1 = package.module:codec"), so that ids
are listed without importing anybody's code, and a package that is broken is in nobody's way until
what it brings is asked for.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from weightledger.ledger.errors import PluginError


def plugin_ids(group: str) -> list[str]:
    """The ids that installed packages bring to a group, in order; nothing is loaded."""
    return sorted({point.name for point in entry_points(group=group)})


def load_plugin(group: str, plugin_id: str) -> Any | None:
    """What an installed package brings under an id; None when none does.

    Raises PluginError, which names the package, for one that cannot be imported, and for an id that
    two packages bring.
    """
    points = list(entry_points(group=group, name=plugin_id))
    if not points:
        return None
    if len({(point.value, _package(point)) for point in points}) > 1:
        packages = " and ".join(sorted(map(_package, points)))
        raise PluginError(f"{plugin_id!r} of {group} is brought by two packages: {packages}")
    point = points[0]
    try:
        return point.load()
    except Exception as error:
        raise PluginError(
            f"{plugin_id!r} of {group} cannot be loaded from the package {_package(point)} "
            f"({point.value}): {error!r}"
        ) from error


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
