"""Which modules an adapter's config means, as PEFT reads it, in time linear in the names' length.

PEFT matches names by Python's `re`, which backtracks: `((\\w|\\.)+)+!` takes for ever on a name of
thirty characters. Here RE2 matches (Cox 2010, "Regular expression matching in the wild"). Patterns
that it has no linear way for (look-around, back-references) and those that the two read differently
are refused; they never mean something else.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import re2

from weightledger.ledger.errors import InvalidRequest

ALL_LINEAR = "all-linear"

MOST_PATTERNS = 1024
MOST_CHARACTERS = 2000

# RE2 takes `{,3}` for plain characters and `[[:alpha:]]` for a class; `re` the other way round.
_READ_DIFFERENTLY = ("{,", "[:")

_Pattern = Any
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Targeting:
    """The modules that a config picks, and their ranks and alphas. All by dotted module name."""

    names: frozenset[str] | _Pattern | None
    excluded: frozenset[str] | _Pattern | None
    layers: frozenset[int] | None
    layer_patterns: tuple[_Pattern, ...]
    ranks: tuple[tuple[_Pattern, int], ...]
    alphas: tuple[tuple[_Pattern, float], ...]
    rank: int
    alpha: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Targeting":
        """Of the fields of adapter_config.json; InvalidRequest names the one that is wrong."""
        ranks, alphas = _mapping(config, "rank_pattern"), _mapping(config, "alpha_pattern")
        names = _picked(config, "target_modules")
        layers = config.get("layers_to_transform")
        many = [layers] if type(layers) is int else layers or []
        if not isinstance(many, list) or any(type(layer) is not int for layer in many):
            raise _unfit("layers_to_transform", layers, "a whole number or a list of them")
        between = _strings(config, "layers_pattern") or [r"[^.]*"]
        return cls(
            names=names,
            excluded=_picked(config, "exclude_modules"),
            layers=frozenset(many) if many else None,
            layer_patterns=tuple(
                _compiled("layers_pattern", one, rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\.")
                for one in between
            ),
            ranks=tuple(
                (_compiled("rank_pattern", key, rf"(.*\.)?({key})$"), value)
                for key, value in ranks.items()
            ),
            alphas=tuple(
                (_compiled("alpha_pattern", key, rf"(.*\.)?({key})$"), value)
                for key, value in alphas.items()
            ),
            rank=config["r"],
            alpha=config["lora_alpha"],
        )

    @property
    def by_kind(self) -> bool:
        """Whether modules are picked by their kind and not by name, which only PEFT can tell."""
        return self.names is None

    def picks(self, module: str) -> bool:
        """Whether the config means this module."""
        if self.excluded is not None and _among(self.excluded, module):
            return False
        if not isinstance(self.names, frozenset):
            return self.names is not None and _among(self.names, module)
        if module in self.names:
            return True
        return _among(self.names, module) and (self.layers is None or self._in_layers(module))

    def rank_of(self, module: str) -> int:
        """The rank of the module's matrices."""
        return _first(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of the module's matrices."""
        return _first(self.alphas, module, self.alpha)

    def _in_layers(self, module: str) -> bool:
        for pattern in self.layer_patterns:
            match = pattern.match(module)
            if match is not None:
                return self.layers is not None and int(match.group("idx")) in self.layers
        return False


def _among(wanted: "frozenset[str] | _Pattern", module: str) -> bool:
    """Whether the name matches, or ends with one of the names, which start at a dot."""
    if not isinstance(wanted, frozenset):
        return wanted.fullmatch(module) is not None
    parts = module.split(".")
    return any(".".join(parts[start:]) in wanted for start in range(len(parts)))


def _first(patterns: Iterable[tuple[_Pattern, _T]], module: str, default: _T) -> _T:
    """The value of the first pattern that the name ends with."""
    for pattern, value in patterns:
        if pattern.match(module):
            return value
    return default


def _picked(config: Mapping[str, Any], field: str) -> "frozenset[str] | _Pattern | None":
    """Names, or one expression; None where the field picks nothing by name."""
    value = config.get(field)
    if not isinstance(value, str):
        names = frozenset(_strings(config, field))
        return names or None
    if field == "target_modules" and value.lower() == ALL_LINEAR:
        return None
    return _compiled(field, value, value) if value else None


def _strings(config: Mapping[str, Any], field: str) -> list[str]:
    value = config.get(field)
    many = [value] if isinstance(value, str) else value or []
    if not isinstance(many, list) or not all(isinstance(one, str) for one in many):
        raise _unfit(field, value, "a text or a list of texts")
    return many


def _mapping(config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"the adapter has a {field} that is not a JSON object", param="lora_path"
        )
    if len(value) > MOST_PATTERNS:
        raise _unfit(field, f"{len(value)} patterns", f"at most {MOST_PATTERNS}")
    return value


def _compiled(field: str, written: str, whole: str) -> _Pattern:
    """`whole`, which `written` is a part of, as an expression that both libraries read alike."""
    if len(written) > MOST_CHARACTERS:
        raise _unfit(field, written, f"at most {MOST_CHARACTERS} characters")
    try:
        re.compile(whole)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidRequest(
            f"the adapter has a {field} that cannot be read: {error} ({written!r:.80})",
            param="lora_path",
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        if any(signs in written for signs in _READ_DIFFERENTLY) or not written.isascii():
            raise re2.error("not read alike by every library")
        return re2.compile(whole, options)
    except re2.error as error:
        why = error.args[0] if error.args else ""
        why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise InvalidRequest(
            f"the adapter has a {field} {written!r:.80} that cannot be matched in linear time "
            f"({why:.80}): write names of modules, or an expression without look-around and "
            "back-references",
            param="lora_path",
        ) from None


def _unfit(field: str, value: Any, expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"the adapter has {field} {value!r:.60}; expected {expected}", param="lora_path"
    )
