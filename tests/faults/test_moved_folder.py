"""A data folder that is moved away under a running server: nothing is made where it was."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import new_database
from tests.serving import Server, serving
from tests.waiting import until

MOVED = "was moved, removed or replaced while it was in use: start again"


@pytest.fixture(params=["sqlite", "postgresql"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """What names the database, which on PostgreSQL does not lie in the folder."""
    if request.param == "sqlite":
        yield []
        return
    with new_database(request, "postgresql", tmp_path) as url:
        yield ["--database", url]


def update(server: Server) -> int:
    sent = {"parameter_name": "2.bias", "update_data": 1.0}
    with server.client() as client:
        return client.post("/v1/models/incremental_update", json=sent).status_code


@pytest.mark.parametrize("replaced", [False, True])
def test_no_key_is_made_and_nothing_signed_where_the_folder_was(
    tmp_path: Path, options: list[str], replaced: bool
) -> None:
    """It made a folder of that name with another key, and signed the log with that."""
    folder = tmp_path / "weightledger-data"
    with serving(folder, *options) as server, server.client() as client:
        assert update(server) == 200
        kept = folder.rename(tmp_path / "elsewhere")
        if replaced:
            folder.mkdir()
        assert update(server) == (200 if options else 503)
        assert client.get("/checkpoint").status_code == 503
        if options:
            until(lambda: f"{folder} {MOVED}" in server.output(), pid=server.process.pid)
        assert folder.exists() == replaced
        assert not replaced or not os.listdir(folder)
        assert (kept / "signing.key").exists()
