"""`serve --engine none`: the log is written where nothing can infer."""

from pathlib import Path

import pytest

from tests.fleet.conftest import MODEL, Follow, make, until_shown
from tests.serving import serving
from weightledger import Ledger, NotFound
from weightledger.api.server.follow import follow as follow_and_serve
from weightledger.api.server.headless import hold_weights
from weightledger.api.server.settings import Settings
from weightledger.ledger.errors import InvalidRequest


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_writer_without_a_model_takes_writes_and_refuses_inference(
    fleet_url: str, follow: Follow, tmp_path: Path
) -> None:
    replica = follow()
    options = ("--database", fleet_url, "--engine", "none", "--model", MODEL)
    with serving(tmp_path / "data", *options) as server, server.client() as http:
        assert "without a model: replicas answer inference" in server.output()
        body = {"parameter_name": "bias", "update_data": 0.5}
        assert http.post("/v1/models/incremental_update", json=body).status_code == 200
        assert http.post("/v1/models/rollback", json={"version_id": "v0"}).status_code == 200
        status, seq, digest = server.shown()
        assert status == "ok"
        refused = http.post("/invocations", json={"inputs": [[0.0] * 8]})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("only tensors are held here")
        for path, asked in {
            "/v1/completions": {"model": MODEL, "prompt": "a"},
            "/v1/embeddings": {"model": MODEL, "input": "a"},
        }.items():
            assert 400 <= http.post(path, json=asked).status_code < 500, path
        assert server.shown() == (status, seq, digest)
    until_shown(replica, seq)
    assert replica.readiness().digest == digest


def test_what_needs_a_model_is_refused_without_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'one.db'}"
    make(url)
    settings = {"engine": "none", "database": url, "data_dir": tmp_path / "data"}
    with pytest.raises(NotFound, match=MODEL):
        hold_weights(Settings(model="other", **settings))
    with pytest.raises(InvalidRequest, match="an evaluator scores a model"):
        hold_weights(Settings(model=MODEL, evaluator=("sentiment",), **settings))
    with pytest.raises(InvalidRequest, match="got none"):
        follow_and_serve(Settings(model=MODEL, **settings))
    with Ledger.open(url) as ledger:
        assert ledger.models() == [MODEL]


def test_a_replica_of_what_no_writer_has_registered_says_what_to_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    with Ledger.open(url):
        pass
    factory = "tests.fleet.conftest:base"
    settings = Settings(model=factory, database=url, data_dir=tmp_path / "data", port=0)
    with pytest.raises(NotFound, match=r"registered: none\. A replica follows"):
        follow_and_serve(settings)
