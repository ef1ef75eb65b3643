"""A data folder that is moved or removed while it is served: nothing is made in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import serving
from tests.waiting import until


@pytest.mark.parametrize(
    "away",
    [lambda folder: folder.rename(folder.with_name("moved")), shutil.rmtree],
    ids=["moved", "removed"],
)
def test_a_server_makes_no_folder_and_no_key_in_the_place_of_its_own(
    tmp_path: Path, away: Callable[[Path], object]
) -> None:
    with serving(tmp_path / "data") as server, server.client() as http:
        until(lambda: http.get("/readyz").json()["evidence"]["signed"] > 0)
        away(server.folder)
        body = {"parameter_name": "2.bias", "update_data": 0.001}
        assert http.post("/v1/models/incremental_update", json=body).status_code == 503
        assert http.get("/checkpoint").status_code == 503
        assert http.post("/v1/models/incremental_update", json=body).status_code == 503
        assert http.get("/livez").status_code == 200
        assert not server.folder.exists()
