"""Replicas while a log is written at random: each state that a reader meets is, bit for bit, the
one that plain arrays have at its position, adapters included, and rollouts show what they say."""

import hashlib
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.debug.adapted import KINDS, Adapted, Family
from tests.debug.arrays import Bits, State, Truth, shown
from tests.debug.families import family
from tests.text_models import tokenizer
from tests.waiting import until
from weightledger import Ledger, Log
from weightledger.ledger.engines.transformers import TransformersEngine

MODEL = "tiny"

# Filters of warnings are the process's, and replicas set them while a test does.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def engine(of: Family) -> TransformersEngine:
    return TransformersEngine(of.base(), tokenizer())


class Replica:
    """One replica, and a reader that notes what it meets: seq, digest, weights and adapters."""

    def __init__(self, url: str, of: Family, name: str) -> None:
        self.name = name
        self.ledger = Ledger.open(url, upgrade=False, connections=2)
        self.follower = self.ledger.follow(MODEL, engine=engine(of), replica=name)
        self.met: list[tuple[int, str, State, list[str]]] = []
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        last = None
        while not self._over.wait(0.001):
            with self.follower.lease() as leased:
                live: Any = leased
                if live.seq != last:
                    last = live.seq
                    state = {n: Bits.of(one) for n, one in live.module.state_dict().items()}
                    self.met.append((live.seq, live.digest.hex(), state, sorted(live.adapted)))

    def close(self) -> None:
        self._over.set()
        self._reader.join()
        self.follower.close()
        self.ledger.close()


class Fleet:
    """Two replicas, and what is written for them to follow."""

    def __init__(self, log: Log, url: str, of: Family) -> None:
        self.log, self.url, self.of = log, url, of
        self.known = Adapted(of, Truth({0: shown(log)}))
        self.replicas = [Replica(url, of, "r0"), Replica(url, of, "r1")]
        self.rollout: str | None = None
        self.percent = 0
        self.to: int | None = None
        self.base: int | None = None
        self.met = 0

    def step(self, random_: random.Random) -> None:
        what = random_.choice(["write"] * 6 + ["restart", "rollout"])
        if what == "write":
            self.known.step(self.log, random_, KINDS)
        elif what == "restart":
            gone = self.replicas.pop(random_.randrange(2))
            gone.close()
            self.compare(gone)
            name = random_.choice([gone.name, f"r{random_.randrange(2, 100)}"])
            self.replicas.append(Replica(self.url, self.of, name))
        elif self.rollout is None:
            self._start(random_)
        elif random_.random() < 0.5:
            self.percent = random_.choice([0, 20, 50, 80, 100])
            self.log.advance_rollout(self.percent)
        else:
            self._end(random_.choice(["finished", "aborted"]))

    def _start(self, random_: random.Random) -> None:
        truth, self.percent = self.known.truth, random_.choice([0, 20, 50, 80, 100])
        if random_.random() < 0.5:
            to, self.to, self.base = "head", None, truth.head
        else:
            seq = random_.choice(truth.seqs)
            to, self.to, self.base = f"seq:{seq}", truth.node(seq), None
        self.rollout = f"rollout_{self.log.start_rollout(to, self.percent).seq}"

    def _end(self, status: str) -> None:
        truth, node = self.known.truth, self.to if status == "finished" else self.base
        seq = self.log.history.store.last_seq() + 1
        self.log.end_rollout(status)
        self.rollout = None
        if node is not None and node != truth.head:
            truth.led_to[seq], truth.left[seq], truth.head = node, truth.head, node
            truth.states[seq], self.known.from_[seq] = truth.states[node], self.known.from_[node]

    def node(self, replica: str) -> int:
        """What a replica has to show, by the rule that is written down."""
        head = self.known.truth.head
        if self.rollout is None:
            return head
        number = int.from_bytes(hashlib.sha256(f"{self.rollout}{replica}".encode()).digest())
        node = self.to if number % 100 < self.percent else self.base
        return head if node is None else node

    def settle(self) -> None:
        """Wait until all show what they have to, and compare it."""
        last = self.log.history.store.last_seq()
        for one in self.replicas:
            follower = one.follower
            until(lambda at=follower: at.readiness().position >= last, f"{one.name} is behind")
            assert follower.readiness().state == "ready"
            node = self.node(one.name)
            assert shown(follower.log) == self.known.truth.states[node]
            assert sorted(follower.log.adapters) == sorted(self.known.from_[node])
            self.compare(one)

    def compare(self, one: Replica) -> None:
        """What its reader met until now."""
        for seq, digest, state, adapters in one.met:
            true = self.known.truth.states[seq]
            tied = {n: true[first] for n, first in self.log.first_names.items()}
            weights = {n: bits for n, bits in true.items() if not n.startswith("adapter/")}
            assert {n: state[n] for n in weights | tied} == weights | tied
            assert adapters == sorted(self.known.from_[seq])
            assert self.log.history.require(seq).state_after.hex() == digest
            self.met += 1
        one.met.clear()

    def close(self) -> None:
        for one in self.replicas:
            one.close()


@pytest.mark.parametrize(("name", "seed"), [("opt", 5)])
def test_replicas_show_what_arrays_say(
    tmp_path: Path, database_url: str, name: str, seed: int
) -> None:
    history(tmp_path, database_url, name, seed, steps=16)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama"])
@pytest.mark.parametrize("seed", range(100, 106))
def test_so_they_do_over_many_histories(
    tmp_path: Path, database_url: str, name: str, seed: int
) -> None:
    history(tmp_path, database_url, name, seed, steps=60)


def history(folder: Path, url: str, name: str, seed: int, steps: int) -> None:
    random_ = random.Random(seed)
    of = family(name, folder)
    with Ledger.open(url) as ledger:
        log = ledger.model(MODEL, engine=engine(of), alpha=0.5)
        fleet = Fleet(log, url, of)
        try:
            for _ in range(steps):
                fleet.step(random_)
                if random_.random() < 0.3:
                    fleet.settle()
            fleet.settle()
            assert fleet.met >= steps // 4
        finally:
            fleet.close()
