"""A server that signs by itself, a witness that cosigns, and an operator who is dishonest."""

import base64
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn

from tests import patient
from tests.api.test_proofs import forge, run
from tests.buckets import free_port
from tests.serving import Server, serving
from tests.waiting import PATIENCE_S, until
from weightledger import IncrementalUpdateRequest, Ledger, verify_offline
from weightledger.api.server.witness import application
from weightledger.ledger.audit import checkpoints, notes, proofs
from weightledger.ledger.audit.notary import Notary, witnessed_problems
from weightledger.ledger.audit.notes import COSIGNATURE, SigningKey, VerifierKey
from weightledger.ledger.audit.signing import Signer
from weightledger.ledger.audit.witness import WitnessBook
from weightledger.ledger.audit.witnesses import Witness
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.events import merkle


class WitnessServer:
    """One `weightledger witness serve` process."""

    def __init__(self, folder: Path, *keys: str) -> None:
        logs = [word for key in keys for word in ("--log", key)]
        command = ("witness", "serve", "--name", "witness.example/w", "--port", "0", *logs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "weightledger", *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "--witness" in line)
        self.named = re.search("'(.*)'", line)[1]  # type: ignore[index]
        self.key = VerifierKey.parse(self.named.partition("#")[2])

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, WitnessServer]]:
    """A server whose log is witnessed, and its witness."""
    folder = tmp_path_factory.mktemp("world")
    elsewhere = tmp_path_factory.mktemp("witness")
    with serving(folder / "weightledger-data"):
        key = run(folder, "checkpoint", "--key").strip()
    witness = WitnessServer(elsewhere, key)
    try:
        with serving(folder / "weightledger-data", "--witness", witness.named) as server:
            yield server, witness
    finally:
        witness.stop()


def update(server: Server) -> int:
    """The seq of an update."""
    sent = {"parameter_name": "2.bias", "update_data": 1.0}
    with server.client() as client:
        reply = client.post("/v1/models/incremental_update", json=sent)
        assert reply.json()["success"], reply.text
        return int(reply.headers["etag"].strip('"'))


def evidence(server: Server) -> dict[str, Any]:
    with server.client() as client:
        return dict(client.get("/readyz").json()["evidence"])


def test_an_update_is_signed_and_witnessed_by_itself(world: tuple[Server, WitnessServer]) -> None:
    server, witness = world
    seq = update(server)
    until(lambda: evidence(server)["witnessed"] > seq, pid=server.process.pid)
    with server.client() as client:
        note = notes.parse(client.get("/checkpoint").text)
        metrics = client.get("/metrics").text
    assert witness.key.check(note) is not None
    assert checkpoints.read(note).size == seq + 1
    assert f'weightledger_witnessed_seq{{model_name="digits"}} {seq}.0' in metrics
    assert 'weightledger_log_contradicted{model_name="digits"} 0.0' in metrics
    said = run(server.folder.parent, "verify", "--quick", "--witnessed", "--witness", witness.named)
    assert "continues what its witnesses hold" in said


def test_a_reply_has_a_receipt_that_witnesses_vouch_for(
    world: tuple[Server, WitnessServer],
) -> None:
    server, witness = world
    with server.client() as client:
        reply = client.post("/invocations", json={"inputs": [[0.0] * 64]})
        seq, digest = int(reply.headers["x-weights-seq"]), reply.headers["x-weights-digest"]
        until(lambda: evidence(server)["witnessed"] > seq, pid=server.process.pid)
        asked = f"/v1/models/updates/seq:{seq}/proof"
        receipt = client.get(asked, params={"digest": digest})
        assert receipt.status_code == 200
        event = verify_offline.check_proof(
            receipt.text,
            verify_offline.NoteKey(run(server.folder.parent, "checkpoint", "--key")),
            [verify_offline.NoteKey(str(witness.key))],
            1,
        )
        assert (event["seq"], event["state_after"]) == (seq, digest)
        other = client.get(asked, params={"digest": "0" * 64})
        assert other.status_code == 404
        assert other.json()["error"]["param"] == "digest"


def test_lengths_of_the_log_are_proven_to_continue_each_other(
    world: tuple[Server, WitnessServer],
) -> None:
    server, _ = world
    update(server)
    with server.client() as client:
        said = client.get("/consistency", params={"first": 1, "second": 3}).json()
        hashes = {name: notes.decoded(said[name]) or b"" for name in ("first_root", "second_root")}
        proof = [notes.decoded(one) or b"" for one in said["hashes"]]
        merkle.check_consistency(1, 3, proof, hashes["first_root"], hashes["second_root"])
        for query, status in (
            ({"first": 3, "second": 1}, 404),
            ({"first": 1, "second": 10_000}, 404),
            ({"first": 10_000}, 404),
            ({}, 400),
        ):
            assert client.get("/consistency", params=query).status_code == status, query
        assert client.get("/v1/models/updates/seq:10000/proof").status_code == 404


def test_a_dishonest_operator_is_caught_by_the_witness(
    world: tuple[Server, WitnessServer], tmp_path: Path
) -> None:
    """Who has the key and every file cuts the last event off, and forgets what was signed."""
    server, witness = world
    seq = update(server)
    until(lambda: evidence(server)["witnessed"] > seq, pid=server.process.pid)
    folder = tmp_path / "theirs"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(server.folder / "ledger.db")) as whole:
        (folder / "weightledger-data").mkdir()
        with contextlib.closing(sqlite3.connect(folder / "weightledger-data/ledger.db")) as copy:
            whole.backup(copy)
    shutil.copy(server.folder / "signing.key", folder / "weightledger-data/signing.key")
    cut = f"WHERE event_key & 1099511627775 >= {seq}"
    forge(folder, *(f"DELETE FROM {one} {cut}" for one in ("touches", "annotations", "events")))
    # In itself the log is whole, and the operator's own key signs it.
    run(folder, "verify", "--quick")
    forged = notes.parse(run(folder, "checkpoint"))
    assert checkpoints.read(forged).size == seq
    said = run(folder, "verify", "--quick", "--witnessed", "--witness", witness.named, status=1)
    assert "cut off" in said
    assert "holds a checkpoint that we signed" in said
    # Grown again to another log of that length, it is still another.
    with Ledger.open(f"sqlite:///{folder}/weightledger-data/ledger.db") as ledger:
        log = ledger.model("digits")
        for _ in range(3):
            log.apply(IncrementalUpdateRequest("2.bias", 3.0, actor="mallory"))
    said = run(folder, "verify", "--quick", "--witnessed", "--witness", witness.named, status=1)
    assert "not those that were signed" in said
    lying = Alive(folder / "weightledger-data", "--witness", witness.named)
    try:
        with lying.start().client() as client:
            until(lambda: client.get("/readyz").status_code == 503, pid=lying.process.pid)
            told = client.get("/readyz").json()
        assert told["reason"] == "the log is not the one that was signed"
        assert "not those that were signed" in told["detail"]
    finally:
        lying.stop()
    # The true log is vouched for as before.
    seq = update(server)
    until(lambda: evidence(server)["witnessed"] > seq, pid=server.process.pid)


class Alive(Server):
    """A server that is up, though not ready."""

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return patient.get(f"{self.url}/livez").status_code == 200
        return False


# Witnesses that are down or lie


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        made = ledger.model("m", base={"w": torch.zeros(4)})
        for _ in range(4):
            made.apply(IncrementalUpdateRequest("w", 1.0, 0.5))
        yield made


LIAR = SigningKey.from_seed("liar", bytes(32), COSIGNATURE)


@contextlib.contextmanager
def answering(status: int, text: str) -> Iterator[Witness]:
    """A witness that says the same whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield Witness(f"http://127.0.0.1:{server.server_port}", LIAR.verifier)
        server.shutdown()


STRANGER = SigningKey.from_seed("liar", bytes(range(32)), COSIGNATURE)
WRONG = f"— liar {base64.b64encode(LIAR.verifier.key_id + bytes(72)).decode()}\n"


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (409, "1000000\n", "answers 409"),
        (409, "nonsense", "without the size"),
        (409, "0\n", "without the size"),
        (409, "3\n", "without the size"),
        (422, "your log is forked\n", "answers 422"),
        (404, "unknown log\n", "answers 404: unknown log"),
        (403, "", "answers 403: nothing"),
        (302, "", "answers 302"),
        (500, "", "answers 500"),
        (200, "", "without a cosignature"),
        (200, "no signature\n", "no line of a signature"),
        (200, STRANGER.sign("text", 1).line(), "without a cosignature"),
        (200, WRONG, "does not fit"),
        (200, "x" * 100_000, "answers 100000 bytes"),
    ],
)
def test_a_witness_that_lies_is_a_problem_and_no_proof(
    log: Any, tmp_path: Path, status: int, text: str, said: str
) -> None:
    with answering(status, text) as liar:
        notary = Notary(log.history.store, Signer.open(tmp_path), [liar])
        standing = notary.vouch()
    assert standing.contradictions == ()
    assert (standing.signed, standing.witnessed) == (5, 0)
    assert said in standing.problems[0], standing.problems


def test_a_quorum_is_enough_and_who_is_down_is_said(log: Any, tmp_path: Path) -> None:
    store, signer = log.history.store, Signer.open(tmp_path)
    down = Witness(f"http://127.0.0.1:{free_port()}", LIAR.verifier)
    book = WitnessBook("w", tmp_path / "w.db", [signer.key(store).verifier])
    with witnessing(book) as true:
        standing = Notary(store, signer, [down, true], 1).vouch()
        assert standing.witnessed == 5
        assert "does not answer" in standing.problems[0]
        assert Notary(store, signer, [down, true]).vouch().witnessed == 0
        # Another process of ours made it see more meanwhile: it is asked again, with a proof.
        notary = Notary(store, signer, [true])
        log.apply(IncrementalUpdateRequest("w", 1.0, 0.5))
        Notary(store, signer, [true]).vouch()
        log.apply(IncrementalUpdateRequest("w", 1.0, 0.5))
        assert notary.vouch().witnessed == 7
        proof = proofs.parse(str(signer.prove(store, 3)))
        proofs.check(proof, signer.key(store).verifier, [true.key], 1)
    book.close()


@contextlib.contextmanager
def witnessing(book: WitnessBook) -> Iterator[Witness]:
    """A witness's own application, served by a thread."""
    server = uvicorn.Server(uvicorn.Config(application(book), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Witness(f"http://127.0.0.1:{port}", book.verifier)
    finally:
        server.should_exit = True
        thread.join()


def test_a_witness_is_named_by_its_address_and_key(tmp_path: Path) -> None:
    plain = SigningKey.from_seed("w", bytes(32)).verifier
    for text, said in (
        ("http://w.example", "URL#KEY"),
        ("http://w.example#key", "NAME\\+ID\\+KEY"),
        (f"http://w.example#{plain}", "not of a witness"),
        (f"w.example#{LIAR.verifier}", "no server's URL"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            Witness.parse(text)
    assert str(Witness.parse(f"http://w.example/#{LIAR.verifier}")) == "liar at http://w.example"
    with pytest.raises(InvalidRequest, match="cannot be reached"):
        Notary(None, Signer(tmp_path), [], 1)  # type: ignore[arg-type]
    twice = [Witness(f"http://{host}.example", LIAR.verifier) for host in ("one", "another")]
    with pytest.raises(InvalidRequest, match="liar is named twice"):
        Notary(None, Signer(tmp_path), twice)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="liar is named twice"):
        witnessed_problems(None, Signer(tmp_path), twice)  # type: ignore[arg-type]


def test_a_body_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    key = SigningKey.from_seed("log", bytes(32)).verifier
    book = WitnessBook("w", tmp_path / "w.db", [key])
    with witnessing(book) as there:
        reply = patient.post(f"{there.url}/add-checkpoint", content=b"x" * 70_000)
        assert reply.status_code == 413
        assert patient.get(f"{there.url}/add-checkpoint").status_code == 405
    book.close()
