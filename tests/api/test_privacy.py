"""What strangers learn: no password from any reply, log or command; no file of the data folder."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch

from tests import patient, warm
from tests.api.test_command import ok
from tests.conftest import new_database
from tests.serving import serving
from tests.waiting import until
from weightledger import InvalidRequest, Ledger
from weightledger.ledger.errors import StorageError

SECRET = "hunter2-Zx9"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """What may be done by whom with what is in a folder, by path."""
    told = {}
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a file that has got its name meanwhile
            told[str(path)] = path.stat().st_mode & 0o777
    return told


def test_a_password_in_the_databases_url_is_never_said(request, tmp_path) -> None:
    with new_database(request, "postgresql", tmp_path) as url:
        secret_url = f"{url}{'&' if '?' in url else '?'}password={SECRET}&application_name=x"
        name = sa.make_url(url).database
        with (
            serving(tmp_path / "data", "--database", secret_url, "--api-key", "wl_key") as server,
            server.client() as stranger,
            server.client(authorization="Bearer wl_key") as known,
        ):
            admin = request.getfixturevalue("postgres_admin")
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            until(lambda: stranger.get("/readyz").status_code == 503)
            told = stranger.get("/readyz").json()
            assert set(told) == {"status", "reason"}
            assert name not in told["reason"]
            assert name in known.get("/readyz").json()["detail"]
            sent = {"parameter_name": "2.bias", "update_data": 1.0}
            failed = known.post("/v1/models/incremental_update", json=sent)
            assert failed.status_code == 503
            assert name in failed.text
            replies = [
                *(stranger.get(path).text for path in ("/readyz", "/health", "/livez")),
                *(known.get(path).text for path in ("/readyz", "/health", "/v1/models/updates")),
                failed.text,
            ]
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert SECRET not in "".join(replies)
        assert SECRET not in server.output()
        assert name in server.output()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/x",
        f"postgresql://127.0.0.1:1/x?password={SECRET}",
        f"postgresql://ledger:{SECRET}@127.0.0.1:xx/x",
        f"postgresql://ledger:{SECRET}@127.0.0.1:1/x?no_such_option=1",
        f"postgresql://127.0.0.1:1/x?password={SECRET}%zz",
        f"mysql://ledger:{SECRET}@h/x",
        f"postgresql://[::1:{SECRET}@h/x",
        f"{SECRET}",
        "sqlite:///x.db?timeout=never",
        "sqlite+none:///x.db",
        "postgresql://h:99999999/",
        "sqlite://",
        "://",
        "",
    ],
)
def test_a_database_url_that_does_not_work_is_an_error_without_secrets(
    tmp_path, monkeypatch, url
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidRequest, StorageError)) as raised, Ledger.open(url):
        pass
    assert str(raised.value)
    if "@" in url or "=" in url:
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize("command", ["status", "serve"])
def test_the_command_says_it_in_one_line(tmp_path, command) -> None:
    url = f"postgresql://ledger:{SECRET}@127.0.0.1:xx/x"
    ran = warm.run(command, "--database", url, cwd=tmp_path)
    assert ran.returncode in (1, 2), ran.stderr
    assert "Traceback" not in ran.stderr
    assert "postgresql://ledger:***@127.0.0.1:xx/x" in ran.stderr
    assert SECRET not in ran.stderr + ran.stdout


@pytest.mark.usefixtures("open_umask")
def test_the_data_folder_is_its_owners_under_any_umask_and_becomes_so_at_start(tmp_path) -> None:
    folder = tmp_path / "deep" / "data"
    options = ("--blob-url", str(folder / "blobs"))
    folder.parent.mkdir()
    with serving(folder, *options) as server:
        sent = {"parameter_name": "2.bias", "update_data": 0.0, "update_type": "replace"}
        patient.post(f"{server.url}/v1/models/incremental_update", json=sent).raise_for_status()
        open_to_others = {path: mode for path, mode in modes(folder).items() if mode & 0o077}
        assert not open_to_others
        assert any(path.endswith("-wal") for path in modes(folder))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777 if path.is_dir() else 0o666)
    with serving(folder) as server:
        assert not [mode for mode in modes(folder).values() if mode & 0o077]
        assert f"others could read {folder}; now only its owner can" in server.output()


@pytest.mark.usefixtures("open_umask")
def test_a_ledger_made_by_a_program_is_its_owners_too(tmp_path, caplog) -> None:
    tmp_path.chmod(0o755)
    path, blobs = tmp_path / "weights.db", tmp_path / "blobs"
    with Ledger.open(f"sqlite:///{path}", blob_url=str(blobs)) as ledger:
        log = ledger.model("m", base=torch.nn.Linear(512, 512))
        log.create_version("first")
        assert not [name for name, mode in modes(blobs).items() if mode & 0o077]
        for file in tmp_path.glob("weights.db*"):
            assert file.stat().st_mode & 0o777 == (0o700 if file.is_dir() else 0o600)
    assert not caplog.records
    path.chmod(0o644)
    with Ledger.open(f"sqlite:///{path}"):
        assert f"others may read {path}" in caplog.text


def test_no_file_is_opened_for_everyone() -> None:
    """What is made with a mode of its own has one that leaves others out."""
    root = Path(__file__).parents[2]
    sources = [path for name in ("ledger", "api") for path in (root / name).rglob("*.py")]
    for path in sources:
        modes_there = re.findall(r"(?:O_CREAT[^,\n]*, |mode=)0o([0-7]+)", path.read_text())
        assert all(mode.endswith("00") for mode in modes_there), path


@pytest.mark.usefixtures("open_umask")
def test_what_is_backed_up_and_restored_is_its_owners_too(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/weights.db") as ledger:
        ledger.model("m", base={"w": torch.zeros(3)})
    copy, data = tmp_path / "copy", tmp_path / "restored"
    ok("backup", str(copy), "--database", f"sqlite:///{tmp_path}/weights.db")
    ok("restore", str(copy), "--data-dir", str(data))
    for folder in (copy, data):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not [name for name, mode in modes(folder).items() if mode & 0o077]
