"""The main job with each blob store: a 50 MB model updated, named, rolled back, reopened, verified;
and a real server with its blobs outside of the database.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.conftest import EMPTY, new_database
from tests.serving import Server
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.api.server.serve import serve
from weightledger.api.server.settings import Settings
from weightledger.ledger.blobs.folder import FolderBlobs
from weightledger.ledger.blobs.objects import ObjectBlobs
from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.errors import InvalidRequest

UPDATE = "/v1/models/incremental_update"


@pytest.fixture
def blob_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "folder":
        return str(tmp_path / "blobs")
    return request.getfixturevalue("bucket_url") if request.param == "s3" else None


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request, request.param, tmp_path, template=EMPTY) as made:
        yield made


def verified(*options: str) -> dict[str, object]:
    """What `weightledger verify` reports in a process of its own."""
    done = warm.run("verify", "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("url", "blob_url", "kind"),
    [
        ("sqlite", "rows", SqlBlobs),
        ("postgresql", "rows", SqlBlobs),
        ("sqlite", "folder", FolderBlobs),
        ("postgresql", "s3", ObjectBlobs),
    ],
    indirect=["url", "blob_url"],
)
def test_a_50_mb_model_lives_with_each_store(
    url: str, blob_url: str | None, kind: type, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(5)
    state = {f"layer{n}.weight": torch.randn(1800, 1800, generator=generator) for n in range(4)}
    with Ledger.open(url, blob_url=blob_url) as ledger:
        log = ledger.model("large", base=state)
        assert type(log.history.blobs) is kind
        version = log.create_version("as trained").name
        step = torch.randn(1800, 1800, generator=generator)
        log.apply(IncrementalUpdateRequest("layer1.weight", step))
        log.record({**log.state(), "layer2.weight": step})
        log.apply(IncrementalUpdateRequest("layer1.weight", 2.0, 0.5, "multiplicative"))
        after = log.state()
        log.rollback(version)
        assert all(torch.equal(log.state()[name], state[name]) for name in state)
        log.rollback("seq:4")
        log.snapshot()
        digest = log.live.state.value
        stored = {item.digest: item.size for item in log.history.blobs.stored()}
        assert stored[log.live.state.digests["weights/layer3.weight"]] == 1800 * 1800 * 4
    with Ledger.open(url, upgrade=False) as ledger:
        again = ledger.history("large").state("head")
        assert all(torch.equal(again[name], after[name]) for name in after)
    if kind is not SqlBlobs and url.startswith("sqlite"):
        assert (tmp_path / "ledger.db").stat().st_size < 1_000_000
    report = verified("--database", url)
    assert (report["result"], report["snapshots"]) == ("ok", 2)
    assert report["head_digest"] == digest.hex()


def test_a_server_keeps_its_blobs_outside_of_the_database(tmp_path: Path) -> None:
    """In a folder; `tests/faults/test_blob_stores.py` has a server with a bucket."""
    blob_url = str(tmp_path / "blobs")
    model = ("--model", "tests.faults.models:factory")
    server = Server(tmp_path / "data", *model, env={"WEIGHTLEDGER_BLOB_URL": blob_url}).start()
    try:
        with server.client() as http:
            for step in (0.1, 0.2, 0.3):
                sent = {"parameter_name": "0.weight", "update_data": step, "learning_rate": 1}
                assert http.post(UPDATE, json=sent).status_code == 200
            named = http.post("/v1/models/create_version", json={"description": "kept"}).json()
            assert http.post("/v1/models/rollback", json={"version_id": "seq:0"}).is_success
            assert http.post("/v1/models/rollback", json=named["data"]).is_success
            digest = http.get("/readyz").json()["digest"]
        server.kill()
        with pytest.raises(InvalidRequest, match="keeps its blobs in") as refused:
            serve(Settings(data_dir=tmp_path / "data", blob_url=str(tmp_path / "other")))
        assert blob_url in str(refused.value) and str(tmp_path / "other") in str(refused.value)
        server = Server(tmp_path / "data", *model).start()
        with server.client() as http:
            assert http.post("/v1/models/verify", json={}).json()["digest"] == digest
    finally:
        server.stop()
    assert (tmp_path / "data/ledger.db").stat().st_size < 500_000  # the model alone is 640,000
    report = verified("--data-dir", str(tmp_path / "data"))
    assert (report["result"], report["head_digest"]) == ("ok", digest)
