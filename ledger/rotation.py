"""Another signing key: said in every log, and vouched for by the one before it."""

import os
from collections.abc import Sequence
from pathlib import Path

from weightledger.ledger.audit import checkpoints
from weightledger.ledger.audit.notes import SigningKey
from weightledger.ledger.audit.signing import (
    Signer,
    alone,
    origin,
    replace_key,
    require_continuation,
)
from weightledger.ledger.events import Draft, Event
from weightledger.ledger.events.bodies import KeyRotation
from weightledger.ledger.history.reader import History
from weightledger.ledger.store.attached import NOTHING
from weightledger.ledger.writing.append_loop import Stateless, append_stateless
from weightledger.ledger.writing.caller import ANYONE, Caller


def rotate_signing_key(
    histories: Sequence[History], folder: Path, *, lost: bool = False, caller: Caller = ANYONE
) -> list[Event]:
    """Make a new signing key for all logs of a ledger, whose data folder this is; an event in each.

    Each log says so with the old public key and the new one. A checkpoint over that event is signed
    by both keys, so whoever trusts the old one can trust the new one; then the old private key is
    forgotten. With `lost` it is gone already: the new one signs alone, and only the event vouches
    for it.

    ProofError, with nothing changed, where a log is no continuation of what was signed last.
    """
    signer = Signer(folder)
    with alone(folder):
        old = None if lost else signer.seed()
        new = os.urandom(32)
        last = {one.model: signer.last(one.store, checked=not lost) for one in histories}
        for history in histories:
            note = last[history.model]
            if note is not None:
                require_continuation(history.store, checkpoints.read(note))
        events = [_said(history, old, new, caller) for history in histories]
        for history in histories:
            name = origin(history.store)
            keys = [SigningKey.from_seed(name, seed) for seed in (old, new) if seed is not None]
            signer.sign(history.store, last[history.model], keys)
            if lost:
                signer.forget_witnessed(history.store)
        replace_key(folder, new)
    return events


def _said(history: History, old: bytes | None, new: bytes, caller: Caller) -> Event:
    name = origin(history.store)
    before = None if old is None else SigningKey.from_seed(name, old).verifier.public
    body = KeyRotation(before, SigningKey.from_seed(name, new).verifier.public)

    def propose(head: Event) -> Stateless:
        return Draft(body, head.state_after), NOTHING

    return append_stateless(history, propose, caller=caller)
