"""Settings: each reaches what it configures, from each of its places; a page tells of each."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import uvicorn

from tests.api.test_command import inside
from weightledger import DynamicUpdateConfig, InvalidRequest, LoRAConfig
from weightledger.api.server import logs
from weightledger.api.server import serve as serving
from weightledger.api.server.documentation import document
from weightledger.api.server.settings import Settings, setting
from weightledger.api.server.sources import (
    FlagError,
    Setting,
    config_file,
    load,
    settings_of,
    shown,
)

ALL = list(settings_of(Settings))
PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def another(one: Setting) -> Any:
    """A value that is not the default."""
    if one.name == "auto_rollback_metrics":
        return ("accuracy", "latency_ms")
    if get_origin(one.plain) is Literal:
        return next(word for word in get_args(one.plain) if word != one.default)
    if one.plain is bool:
        return not one.default
    if one.plain in (int, float):
        return (one.default or 0) + (1 if one.plain is int else 0.5)
    return one.plain(f"other-{one.key}")


def in_toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_each_setting_is_taken_from_each_place_in_order(one: Setting, tmp_path: Path) -> None:
    value = another(one)
    file = tmp_path / "some.toml"
    file.write_text(f"{one.name} = {in_toml(value)}\n")
    loaded = load(Settings, {}, environment={}, file=file)
    assert getattr(loaded.settings, one.name) == value
    assert loaded.origins[one.name] == f"file {file}"
    default = "" if one.default is None else one.default
    file.write_text(f"{one.name} = {in_toml(default)}\n")
    environment = {one.variable: shown(value)}
    loaded = load(Settings, {}, environment=environment, file=file)
    assert getattr(loaded.settings, one.name) == value
    assert loaded.origins[one.name] == f"environment {one.variable}"
    if one.flag:
        environment = {one.variable: shown(one.default)}
        given = value if one.plain is bool else shown(value)
        loaded = load(Settings, {one.key: given}, environment=environment, file=file)
        assert getattr(loaded.settings, one.name) == value
        assert loaded.origins[one.name] == f"flag {one.flag}"
    loaded = load(Settings, {}, environment={})
    assert (getattr(loaded.settings, one.name), loaded.origins[one.name]) == (
        one.default,
        "default",
    )


@pytest.mark.parametrize("one", [one for one in ALL if one.flag], ids=lambda one: one.name)
def test_each_flag_reaches_the_settings(one: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command itself: a flag that is declared and lost is what this is for."""
    given: list[Settings] = []
    monkeypatch.setattr(serving, "serve", lambda settings, stop: given.append(settings))
    if not one.metadata["serve"]:
        return
    value = another(one)
    flag = [one.flag, shown(value)]
    if one.plain is bool:
        flag = [one.flag if value else f"--no-{one.flag[2:]}"]
    status, _, err = inside("serve", *flag)
    assert status == 0, err
    assert getattr(given[0], one.name) == value


@pytest.mark.parametrize("config", [DynamicUpdateConfig, LoRAConfig])
def test_each_field_of_what_is_configured_is_a_setting(config: Any) -> None:
    names = {"backup_dir": "data_dir", "database_url": "database"}
    for field in dataclasses.fields(config):
        name = names.get(field.name, field.name)
        one = next(one for one in ALL if one.name == name)
        settings = Settings(**{name: another(one)})
        made = settings.lora_config() if config is LoRAConfig else settings.update_config()
        assert getattr(made, field.name) == another(one)


class Watched(Settings):
    """Remembers which settings were looked at."""

    def __getattribute__(self, name: str) -> Any:
        seen.add(name)
        return super().__getattribute__(name)


seen: set[str] = set()


class Started(BaseException):
    """The server would listen now."""


def test_no_setting_is_read_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` up to listening, with each kind of engine, looks at all of them."""

    def listen(_server: uvicorn.Server, sockets: object = None) -> None:
        raise Started

    monkeypatch.setattr(uvicorn.Server, "run", listen)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    seen.clear()
    with contextlib.suppress(Started):
        issuer = {"oidc_issuer": "http://127.0.0.1:9", "oidc_audience": "ledger"}
        serving.serve(Watched(data_dir=tmp_path / "one", port=0, **issuer))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    logs.configure(Watched())
    driven = Watched(
        data_dir=tmp_path / "two",
        port=0,
        model=str(folder),
        engine="vllm",
        engine_url="http://127.0.0.1:9",
        engine_wait_s=0,
    )
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        serving.serve(driven)
    by_commands = {one.name for one in ALL if not one.metadata["serve"]}
    assert {one.name for one in ALL} - seen - by_commands == set()


def test_the_page_is_what_the_command_writes() -> None:
    assert PAGE.read_text() == document(), "weightledger config list --markdown " + str(PAGE)
    for one in ALL:
        assert f"`{one.name}`" in document()
        assert one.help.endswith(".")


def test_a_file_is_read_strictly(tmp_path: Path) -> None:
    for text, said in (
        ("prot = 1", "'prot' is no setting; there are "),
        ("[server]\nport = 1", "'server' is no setting"),
        ('port = "1"', "weightledger.toml: port: .*valid integer"),
        ('data_dir = ""', "data_dir: must not be empty; the default is weightledger-data"),
        ("auto_rollback_metrics = []", "auto_rollback_metrics: must not be empty"),
        ("port = 99999", "65535"),
        ("enable_versioning = 1", "valid boolean"),
        ('engine = "spark"', "'embedded', 'vllm', 'aphrodite' or 'none'"),
        ('auto_rollback_metrics = ["beauty"]', "auto_rollback_metrics may be"),
        ("port = ", "cannot be read"),
    ):
        file = tmp_path / "weightledger.toml"
        file.write_text(text)
        with pytest.raises(InvalidRequest, match=said) as raised:
            load(Settings, {}, environment={})
        assert "weightledger.toml" in str(raised.value)
    file.unlink()
    file.mkdir()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load(Settings, {}, environment={})
    file.rmdir()
    file.write_text("port = 7\n")
    assert load(Settings, {}, environment={}).settings.port == 7
    with pytest.raises(InvalidRequest, match="no settings file"):
        config_file(tmp_path / "other.toml")
    with pytest.raises(FlagError, match="flag --port"):
        load(Settings, {"port": "many"}, environment={})
    with pytest.raises(InvalidRequest, match="environment WEIGHTLEDGER_PORT"):
        load(Settings, {}, environment={"WEIGHTLEDGER_PORT": "many"})


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_empty_variable_is_the_default_or_an_error(one: Setting) -> None:
    """Never something else: an empty folder was the current one, empty metrics judged nothing."""
    empty = one.default in (None, ())
    for text in ("", " "):
        if empty:
            loaded = load(Settings, {}, environment={one.variable: text})
            assert getattr(loaded.settings, one.name) == one.default
        else:
            with pytest.raises(InvalidRequest, match=one.variable):
                load(Settings, {}, environment={one.variable: text})


def test_a_secret_is_in_no_message(tmp_path: Path) -> None:
    file = tmp_path / "weightledger.toml"
    file.write_text("api_key = 12345\n")
    with pytest.raises(InvalidRequest) as raised:
        load(Settings, {}, environment={})
    assert "12345" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class Table:
    size: int = setting(1, "Its size.")


@dataclasses.dataclass(frozen=True)
class WithTable:
    table: Table = dataclasses.field(default_factory=Table)


def test_settings_within_a_table(tmp_path: Path) -> None:
    (one,) = settings_of(WithTable)
    assert (one.variable, one.flag) == ("WEIGHTLEDGER_TABLE__SIZE", "--table-size")
    (tmp_path / "weightledger.toml").write_text("[table]\nsize = 2\n")
    assert load(WithTable, {}, environment={}).settings.table.size == 2
    environment = {"WEIGHTLEDGER_TABLE__SIZE": "3"}
    assert load(WithTable, {}, environment=environment).settings.table.size == 3
    assert load(WithTable, {one.key: "4"}, environment=environment).settings.table.size == 4


def test_config_show_tells_values_and_places_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTLEDGER_API_KEY", "wl_hidden")
    monkeypatch.setenv("WEIGHTLEDGER_DATABASE", "postgresql://me:pass1@host/db?password=pass2")
    monkeypatch.setenv("WEIGHTLEDGER_PROT", "1")
    status, out, err = inside("config", "show", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["api_key"] == {
        "name": "api_key",
        "value": "***",
        "from": "environment WEIGHTLEDGER_API_KEY",
    }
    assert rows["port"]["from"] == "default"
    for secret in ("wl_hidden", "pass1", "pass2"):
        assert secret not in out
    assert "WEIGHTLEDGER_PROT is set in the environment and is no setting" in err
