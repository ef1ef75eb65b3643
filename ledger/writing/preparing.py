"""The gate before an append: replicas build the state of an update, and prove it, beforehand.

An event is for ever, so what they are asked about is a proposal beside the log. It is gone once it
is decided, and past its deadline it is nobody's: a writer that died leaves nothing that later ones
would wait for. What was not attested in time counts as not prepared, and so does what a replica
said that was not heard of again.
"""

import contextlib
import hashlib
import time
from typing import Any

from weightledger.ledger import interrupts
from weightledger.ledger.errors import LedgerError, SeqTaken
from weightledger.ledger.events import Draft, seal
from weightledger.ledger.history import rollouts
from weightledger.ledger.history.reader import History
from weightledger.ledger.store.attached import Attached
from weightledger.ledger.store.proposal_rows import Incarnation, ProposalProgress
from weightledger.ledger.writing.policy import Preparing, Verdict
from weightledger.ledger.writing.staged import Staged

_LOOK_S = 0.02

# Of replicas that answer inference; the others, fenced ones among them, are not asked.
_SERVING = ("ready", "behind", "stale")


def prepared(rule: Preparing, staged: Staged, draft: Draft, attached: Attached) -> Verdict:
    """Have replicas build the state of a draft; the verdict, with who attested as its evidence.

    Blobs are durable before anybody is asked for them. SeqTaken when another writer appends
    meanwhile: what is proposed is then on no state that is live.
    """
    history, head = staged.history, staged.live.head
    asked = _asked(rule, history)
    if not asked:
        return _refused(rule, asked, [], "no replica is there that serves and would show it")
    for digest, data in attached.blobs.items():
        history.blobs.put(digest, data)
    event = seal(draft, history.model, head, time.time_ns() // 1000)
    store = history.store.proposals
    proposal = store.propose(event.header, attached.inline, asked, rule.timeout_s)
    try:
        while True:
            progress = store.progress(proposal)
            done, problem = _judged(rule, asked, progress, event.state_after)
            if problem is not None:
                return _refused(rule, asked, done, problem)
            if len(done) == len(asked):
                return Verdict(evidence={"prepared": _told(rule, done)})
            if history.store.last_seq() > head.seq:
                raise SeqTaken
            interrupts.handle()
            time.sleep(_LOOK_S)
    finally:
        # What is in the way shows in what is appended next; the deadline ends it all the same.
        with contextlib.suppress(LedgerError):
            store.withdraw(proposal)


def _asked(rule: Preparing, history: History) -> list[Incarnation]:
    """Who has to build it: of those who serve and would show it, all or the canaries."""
    rollout = rollouts.newest(history.store)
    there = [
        (row.replica, row.incarnation)
        for row in history.store.replicas.all()
        if row.leased
        and row.standing.state in _SERVING
        and rollouts.target(rollout, row.replica) is None
    ]
    if rule.of == "all" or (rollout is not None and rollout.running and rollout.base is not None):
        return there  # while a rollout holds the others, those who follow the head are the canaries
    ranked = sorted(there, key=lambda one: hashlib.sha256(one[0].encode()).digest())
    return ranked[: -(-len(ranked) * rule.percent // 100)]


def _judged(
    rule: Preparing, asked: list[Incarnation], progress: ProposalProgress, state: bytes
) -> tuple[list[Incarnation], str | None]:
    """Who has attested the state, and what is in the way; None while nothing is."""
    done: list[Incarnation] = []
    for one in asked:
        name, said = one[0], progress.attested.get(one)
        if said is None:
            if one not in progress.leased:
                return done, f"replica {name!r} was not heard of any more while it prepared"
        elif said.problem is not None:
            return done, f"replica {name!r}: {said.problem}"
        elif said.digest != state:
            return done, f"replica {name!r} built another state"
        else:
            done.append(one)
    if progress.open:
        return done, None
    missing = ", ".join(repr(name) for name, number in asked if (name, number) not in done)
    return done, f"not in {rule.timeout_s:g} s by {missing or 'the writer'}"


def _refused(
    rule: Preparing, asked: list[Incarnation], done: list[Incarnation], why: str
) -> Verdict:
    told = {**_told(rule, done), "asked": _names(asked)}
    return Verdict(reason=f"Not prepared: {why}", evidence={"prepared": told})


def _told(rule: Preparing, done: list[Incarnation]) -> dict[str, Any]:
    return {"rule": rule.of, "by": _names(done)}


def _names(replicas: list[Incarnation]) -> list[dict[str, Any]]:
    return [{"replica": name, "incarnation": number} for name, number in replicas]
