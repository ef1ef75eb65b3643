"""Signed folders: verified by OpenSSF's command, brought along by what changed, never forged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from safetensors.torch import load_file

from tests.api.test_command import inside
from tests.in_process import here
from weightledger import IncrementalUpdateRequest, InvalidRequest, Ledger, Log
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.bundles import folder as layouts
from weightledger.ledger.bundles import statement as statements
from weightledger.ledger.bundles.signing import sign
from weightledger.ledger.errors import ProofError

KEY = statements.key_from_seed(b"k" * 32)


@pytest.fixture
def log(sqlite_url: str) -> Iterator[Log]:
    shared = torch.linspace(-1, 1, 300_000)
    base = {
        "a": torch.ones(600_000),
        "b": torch.zeros(4, 4, dtype=torch.bfloat16),
        "c.tied": shared,
        "d": torch.arange(5),
    }
    with Ledger.open(sqlite_url) as ledger:
        yield ledger.model("m", base=base)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "FILE_BYTES", 1024 * 1024)


def update(log: Log, name: str, value: float) -> None:
    log.apply(IncrementalUpdateRequest(name, [value], 1.0, "additive", indices=[3]))


def verified(folder: Path, key: ec.EllipticCurvePrivateKey = KEY) -> bool:
    """Whether OpenSSF's command takes it."""
    public = folder.with_suffix(".pem")
    public.write_text(statements.public_pem(key))
    signature = str(folder / layouts.SIGNATURE)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "model_signing", "verify", "key", str(folder)),
            *("--signature", signature, "--public_key", str(public)),
        ],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode == 0


def held(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that any reader of safetensors finds by the index."""
    index = json.loads((folder / layouts.INDEX).read_text())["weight_map"]
    return {name: load_file(folder / file)[name] for name, file in index.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_it_is_brought_along_by_what_changed_and_verified_by_their_command(
    log: Log, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    out = tmp_path / "signed"
    first = sign(log.history, "head", out, KEY)
    assert first.files == first.written == 6  # four of tensors, the index and the state's lines
    assert same(held(out), log.state())
    update(log, "a", 0.5)
    log.create_version("named")
    again = sign(log.history, "v1", out, KEY)
    assert again.written == 3 and again.files == 6
    assert same(held(out), log.state())
    update(log, "c.tied", 0.25)
    log.rollback("seq:0")
    back = sign(log.history, "head", out, KEY)
    assert back.facts["seq"] == "0"
    assert same(held(out), log.state())
    index = json.loads((out / layouts.INDEX).read_text())["metadata"]
    assert index["weight_ledger.model"] == "m"
    assert index["weight_ledger.digest"] == log.live.state.value.hex() == back.facts["digest"]
    # A whole tensor in the place of another, which no difference leads to, is written too.
    log.apply(IncrementalUpdateRequest("d", [9, 9, 9, 9, 9], 1.0, "replace"))
    sign(log.history, "head", out, KEY)
    assert same(held(out), log.state()) and verified(out)
    file = out / first_file(out)
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert not verified(out)


def first_file(folder: Path) -> str:
    return sorted(one.name for one in folder.glob("*.safetensors"))[0]


@pytest.mark.parametrize(
    "tamper", ["touched", "signature", "lines", "gone", "cut", "another key", "another log"]
)
def test_what_was_tampered_with_is_written_anew_and_never_signed(
    log: Log, tmp_path: Path, tamper: str
) -> None:
    out = tmp_path / "signed"
    sign(log.history, "head", out, KEY)
    update(log, "a", 0.5)
    file, key = out / first_file(out), KEY
    if tamper == "touched":  # another element of the tensor that is going to change
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    elif tamper == "signature":
        signature = out / layouts.SIGNATURE
        signature.write_text(signature.read_text().replace('"sig":"', '"sig":"A'))
    elif tamper == "lines":
        (out / layouts.STATE).write_text("{}")
    elif tamper == "gone":
        file.unlink()
    elif tamper == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif tamper == "another key":
        key = ec.generate_private_key(ec.SECP384R1())
    else:
        with Ledger.open(f"sqlite:///{tmp_path}/other.db") as ledger:
            other = ledger.model("m", base={"a": torch.zeros(600_000)})
            shutil.rmtree(out)
            sign(other.history, "head", out, KEY)
    done = sign(log.history, "head", out, key)
    assert done.written == done.files
    assert same(held(out), log.state())
    statement = statements.read((out / layouts.SIGNATURE).read_text(), key)
    assert statement.files.keys() == {one.name for one in out.iterdir()} - {layouts.SIGNATURE}


def test_a_tied_tensor_has_both_names(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.one, module.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    module.two.weight = module.one.weight
    out = tmp_path / "signed"
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base=module)
        sign(log.history, "head", out, KEY)
        update(log, "one.weight", 1.0)
        assert sign(log.history, "head", out, KEY).written == 3
        assert same(held(out), log.state())
        assert torch.equal(held(out)["two.weight"], held(out)["one.weight"])


def test_a_folder_of_something_else_is_left_alone(log: Log, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is no signed folder"):
        sign(log.history, "head", tmp_path, KEY)
    assert [one.name for one in tmp_path.iterdir() if one.suffix == ".txt"] == ["mine.txt"]
    with pytest.raises(ProofError):
        statements.read("{}", KEY)


def test_by_command(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with Ledger.open(f"sqlite:///{tmp_path}/data/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(4)})
        log.create_version("first")
    at = ("--data-dir", str(tmp_path / "data"))
    status, out, err = inside("sign", "v0", "-o", str(tmp_path / "signed"), "--json", *at)
    assert status == 0, err
    assert json.loads(out)["files_written"] == 3
    public = inside("sign", "--key", *at)[1]
    assert public.startswith("-----BEGIN PUBLIC KEY-----")
    own, wrong = tmp_path / "own.pem", tmp_path / "wrong.pem"
    for file, key in (
        (own, ec.generate_private_key(ec.SECP256R1())),
        (wrong, ed25519.Ed25519PrivateKey.generate()),
    ):
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        file.write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    assert inside("sign", "--key", "--private-key", str(own), *at)[1] != public
    assert inside("sign", *at)[0] == 2
    for bad in (wrong, tmp_path / "none.pem"):
        status, _, err = inside("sign", "--key", "--private-key", str(bad), *at)
        assert status == 1 and "pem" in err


def test_over_http(tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    with here(tmp_path / "data", auto_rollback_threshold=0.0) as server, server.client() as http:
        version = http.post("/v1/models/create_version", json={"description": "one"}).json()
        http.post(
            "/v1/models/incremental_update", json={"parameter_name": "bias", "update_data": 1.0}
        )
        version_id = version["data"]["version_id"]
        before = set(server.folder.rglob("*"))
        reply = http.get(f"/v1/models/versions/{version_id}/signed")
        assert (reply.status_code, reply.headers["content-type"]) == (
            200,
            "application/octet-stream",
        )
        weights = http.get(f"/v1/models/versions/{version_id}/weights")
        assert reply.headers["x-weights-digest"] == weights.headers["x-weights-digest"]
        unpack = ["tar", "-xf", "-", "-C", str(tmp_path)]
        subprocess.run(unpack, input=reply.content, check=True)
        key = statements.key_from_seed(Signer.open(server.folder).seed())
        assert http.get("/v1/models/signing_key").text == statements.public_pem(key)
        assert verified(tmp_path / "signed", key)
        assert (
            statement_of(tmp_path / "signed", key)["digest"] == weights.headers["x-weights-digest"]
        )
        refused = http.get("/v1/models/versions/v99/signed")
        assert (refused.status_code, refused.json()["error"]["type"] is None) == (404, False)
        assert http.get("/v1/models/versions/v0/signed", params={"to": "x"}).status_code == 400
        assert set(server.folder.rglob("*")) <= before | {server.folder / "signing.key"}


def statement_of(folder: Path, key: ec.EllipticCurvePrivateKey) -> Any:
    return statements.read((folder / layouts.SIGNATURE).read_text(), key).facts
