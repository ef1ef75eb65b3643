"""Where settings come from: flags win over environment, environment over file, file over defaults.

The file is `weightledger.toml` in the current folder, or the one that `--config-file` or
WEIGHTLEDGER_CONFIG_FILE names; a name in it that is no setting is an error. A setting within a
table is `WEIGHTLEDGER_TABLE__NAME` in the environment and `--table-name` on the command line.
"""

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from weightledger.api.server.settings import problem_of
from weightledger.ledger.errors import InvalidRequest

PREFIX = "WEIGHTLEDGER_"
FILE = Path("weightledger.toml")
FILE_VARIABLE = f"{PREFIX}CONFIG_FILE"
DEFAULT = "default"

S = TypeVar("S")


class FlagError(InvalidRequest):
    """A flag's value cannot be: the command was used wrongly."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a model: its path of names, its type, its default, and what is said of it."""

    path: tuple[str, ...]
    type: Any
    default: Any
    metadata: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As in Python: `max_loras`, `table.name`."""
        return ".".join(self.path)

    @property
    def key(self) -> str:
        """As an identifier, for parameters of a function."""
        return "__".join(self.path)

    @property
    def flag(self) -> str | None:
        if self.metadata.get("env"):
            return None
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def variable(self) -> str:
        return self.metadata.get("env") or PREFIX + self.key.upper()

    @property
    def help(self) -> str:
        return str(self.metadata["help"])

    @property
    def secret(self) -> bool:
        return bool(self.metadata.get("secret"))

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.type)

    @property
    def plain(self) -> Any:
        """The type without bounds and without None."""
        found = self.type
        while True:
            if hasattr(found, "__metadata__"):
                found = get_args(found)[0]
            elif get_origin(found) in (Union, UnionType):  # Annotated[…] | None is a Union
                (found,) = (one for one in get_args(found) if one is not type(None))
            else:
                return found

    def shown_default(self) -> str:
        """The default as people write it."""
        return shown(self.default)


@dataclass(frozen=True, slots=True)
class SourcedSettings(Generic[S]):
    """Settings, and for each by name where its value comes from."""

    settings: S
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str
    flag: bool = False
    typed: bool = False  # by its place, so that words are not read as numbers


def settings_of(model: type, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of a settings dataclass, those within tables too."""
    hints = get_type_hints(model, include_extras=True)
    for one in dataclass_fields(model):
        here = (*path, one.name)
        if is_dataclass(hints[one.name]):
            yield from settings_of(hints[one.name], here)
            continue
        default = one.default
        if default is MISSING:
            raise TypeError(f"setting {'.'.join(here)} has no default")
        yield Setting(here, hints[one.name], default, one.metadata)


def load(
    model: type[S],
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> SourcedSettings[S]:
    """The settings in force. `flags` are those given, by `Setting.key`.

    Raises FlagError for a flag's value that cannot be, InvalidRequest for any other, with the
    place it comes from.
    """
    known = list(settings_of(model))
    path = config_file(file, environment)
    written = {} if path is None else _read(path, known)
    values: dict[tuple[str, ...], Any] = {}
    origins: dict[str, _Given] = {}
    for one in known:
        given = _given(one, flags, environment, written, path)
        if given is None:
            continue
        origins[one.name] = given
        values[one.path] = _validated(one, given)
    try:
        settings = _built(model, values)
    except InvalidRequest as error:
        name = problem_of(error)
        if name not in origins:
            raise
        raise _refused(origins[name], f"{origins[name].origin}: {error}", name) from None
    names = {
        one.name: origins[one.name].origin if one.name in origins else DEFAULT for one in known
    }
    return SourcedSettings(settings, names)


def config_file(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The settings file that is read, if there is one; InvalidRequest for one that is named and
    missing."""
    named = given or (Path(name) if (name := environment.get(FILE_VARIABLE)) else None)
    if named is None:
        return FILE if os.path.lexists(FILE) else None
    if not named.is_file():
        raise InvalidRequest(f"there is no settings file {named}", param="config_file")
    return named


def strangers(model: type, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that look like settings and are none."""
    known = {one.variable for one in settings_of(model)} | {FILE_VARIABLE}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def shown(value: Any) -> str:
    """A value as it is written in the environment, empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _given(
    one: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    written: Mapping[tuple[str, ...], Any],
    path: Path | None,
) -> _Given | None:
    if flags.get(one.key) is not None:
        return _Given(flags[one.key], f"flag {one.flag}", flag=True)
    if one.variable in environment:
        return _Given(environment[one.variable], f"environment {one.variable}")
    if one.path in written:
        return _Given(written[one.path], f"file {path}", typed=True)
    return None


def _read(path: Path, known: list[Setting]) -> dict[tuple[str, ...], Any]:
    """The file's values by path; InvalidRequest for a name that is no setting."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", param="config_file") from None
    names = {one.path for one in known}
    tables = {one[:n] for one in names for n in range(1, len(one))}
    found: dict[tuple[str, ...], Any] = {}

    def walk(values: Mapping[str, Any], above: tuple[str, ...]) -> None:
        for name, value in values.items():
            here = (*above, name)
            if here in names:
                found[here] = value
            elif here in tables and isinstance(value, dict):
                walk(value, here)
            else:
                raise InvalidRequest(
                    f"{path}: {'.'.join(here)!r} is no setting; there are "
                    + ", ".join(sorted(".".join(one) for one in names)),
                    param=".".join(here),
                )

    walk(table, ())
    return found


def _validated(one: Setting, given: _Given) -> Any:
    from pydantic import TypeAdapter, ValidationError

    value = given.value
    if isinstance(value, str):
        if one.optional and not value.strip():
            return None
        if get_origin(one.plain) is tuple:
            value = _listed(value)
        elif one.optional or one.secret:
            value = value.strip()
    if isinstance(value, list):
        value = tuple(value)
    # A file has types of its own: there 1 is not true, and "1" is no number.
    strict = given.typed and one.plain is not Path
    # What is set in a file is named by it; a variable and a flag are the setting's name already.
    place = f"{given.origin}: {one.name}" if given.typed else given.origin
    if (one.default and value in ("", ())) or (one.plain in (str, Path) and not str(value).strip()):
        raise _refused(
            given, f"{place}: must not be empty; the default is {one.shown_default()}", one.name
        )
    try:
        return TypeAdapter(one.type).validate_python(value, strict=strict)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        text = "" if one.secret else f", got {value!r}"
        raise _refused(given, f"{place}: {said}{text}", one.name) from None


def _listed(text: str) -> list[str]:
    """Words of a variable or a flag: `a,b` or a JSON list."""
    if text.strip().startswith("["):
        try:
            return [str(word) for word in json.loads(text)]
        except ValueError:
            pass
    return [word for piece in text.split(",") if (word := piece.strip())]


def _refused(given: _Given, message: str, name: str | None) -> InvalidRequest:
    return (FlagError if given.flag else InvalidRequest)(message, param=name)


def _built(model: type[S], values: Mapping[tuple[str, ...], Any]) -> S:
    """The dataclass, with those of its tables."""
    hints = get_type_hints(model, include_extras=True)
    made: dict[str, Any] = {}
    for one in dataclass_fields(model):  # type: ignore[arg-type]
        if is_dataclass(hints[one.name]):
            inner = {path[1:]: value for path, value in values.items() if path[0] == one.name}
            made[one.name] = _built(hints[one.name], inner)
        elif (one.name,) in values:
            made[one.name] = values[(one.name,)]
    return model(**made)
