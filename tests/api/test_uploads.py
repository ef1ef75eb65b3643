"""Faults around a commit: before it the write is refused whole, after it the reply stands."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.numpy import save

from tests import patient
from tests.in_process import listening
from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from weightledger.api.rest import uploads
from weightledger.ledger.errors import StorageUnavailable

BODY = save({"weight": np.ones((4, 4), "f4")})
FILE = {"content-type": "application/octet-stream"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DynamicModelManager]:
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data")
    opened = DynamicModelManager(TorchEngine(torch.nn.Linear(4, 4)), "uploads", config=config)
    yield opened
    opened.close()


def fail(number: int) -> Any:
    def failing(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


def send(url: str) -> httpx2.Response:
    return patient.post(f"{url}/v1/models/batch_update", content=BODY, headers=FILE)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.EACCES, "storage_unavailable"),
        (errno.EROFS, "storage_unavailable"),
        (errno.EIO, "storage_unavailable"),
        (errno.EMFILE, "storage_unavailable"),
    ],
)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(tempfile, "mkstemp"), (os, "write"), (os, "close"), (uploads, "safe_open")],
    ids=["open", "write", "close", "map"],
)
def test_what_cannot_be_stored_is_503_and_changes_nothing(
    manager, monkeypatch, owner, name, number, code
) -> None:
    with listening(manager) as url:
        # Only this module's calls fail: the server's own files and sockets go on working.
        module = uploads if owner is not uploads else None
        if module is not None:
            monkeypatch.setattr(module, owner.__name__, Failing(owner, name, fail(number)))
        else:
            monkeypatch.setattr(owner, name, fail(number))
        reply = send(url)
        assert reply.status_code == 503, reply.text
        assert reply.json()["error"]["code"] == code
        assert manager.log.history.head().seq == 0
        monkeypatch.undo()
        assert send(url).json()["success"]
    assert not list(Path(manager.config.backup_dir).glob("upload-*.part"))


class Failing:
    """A module with one function replaced."""

    def __init__(self, module: Any, name: str, function: Any) -> None:
        self._module, self._name, self._function = module, name, function

    def __getattr__(self, name: str) -> Any:
        return self._function if name == self._name else getattr(self._module, name)


def test_a_file_that_cannot_be_deleted_does_not_undo_the_reply(
    manager, monkeypatch, caplog
) -> None:
    with listening(manager) as url:
        monkeypatch.setattr(Path, "unlink", fail(errno.EIO))
        reply = send(url)
        monkeypatch.undo()
        assert reply.status_code == 200, reply.text
        assert reply.json()["success"]
        assert manager.log.history.head().seq == 1
    assert "cannot delete" in caplog.text
    (left,) = Path(manager.config.backup_dir).glob("upload-*")
    assert left.stat().st_mode & 0o777 == 0o600
    uploads.discard_leftovers(left.parent)
    assert not left.exists()


def test_what_fails_after_a_commit_does_not_undo_the_reply(manager, monkeypatch, caplog) -> None:
    def unreachable(*_: object) -> None:
        raise StorageUnavailable("the database cannot be reached")

    def lose_the_database(_: object) -> None:
        monkeypatch.setattr(manager.log.history, "require", unreachable)

    with listening(manager) as url, patient.Client(base_url=url) as http:
        assert send(url).json()["success"]
        monkeypatch.setattr(manager.log._anchoring, "after", fail(errno.ENOMEM))
        manager.log.subscribe(lose_the_database)
        back = http.post("/v1/models/rollback", json={"version_id": "seq:0"})
        assert back.status_code == 200, back.text
        assert "State after event 0" in back.json()["data"]["description"]
        update = {"parameter_name": "bias", "update_data": 1.0}
        assert http.post("/v1/models/incremental_update", json=update).json()["success"]
        monkeypatch.undo()
        assert manager.log.history.head().state_seq == 3
    assert "no snapshot after event 2" in caplog.text
    assert "event_2 stands, but event 0 cannot be read" in caplog.text
