"""A log of a million events, written in bulk: the same rows as appending one by one would give.

Headers are made from a template, since sealing a million events takes minutes; the first thousand
are compared byte for byte with `events.event.seal`, and `benchmarks.audit` verifies the chain.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from benchmarks import bulk
from weightledger.ledger.events import (
    REGISTERED,
    ROLLED_BACK,
    STATE_CHANGING,
    UPDATE_REJECTED,
    UPDATED,
    UPDATES,
    VERSION_CREATED,
    VERSIONS,
    Annotation,
    BlobRef,
    Counts,
    Draft,
    Event,
    leaf_hash,
    seal,
)
from weightledger.ledger.events.bodies import (
    BODIES,
    NamedState,
    Registered,
    RolledBack,
    UpdateRejected,
    VersionCreated,
)
from weightledger.ledger.events.changes import TensorChange
from weightledger.ledger.sql.layout import SEQ_BITS
from weightledger.ledger.store.sql_store import SqlStore

MODEL = "long"
START = 1_700_000_000_000_000
PARAMETERS = 300
STAGES = ("warm-up", "main", "cool-down")
CHECKED = 1000

# Four layers of actors: a few busy ones, and ones that did next to nothing.
ACTORS = [("trainer", 0.6), ("tuner", 0.2), ("ana", 0.04), ("bo", 0.01), ("cy", 0.0001)]
REASONS = [
    (None, 0.3),
    ("optimizer step", 0.5),
    ("nightly fine-tuning run", 0.15),
    ("drift in sensor 7, learning rate halved", 0.0499),
    ("rolled out by hand after the incident", 0.0001),
]
KINDS = [(UPDATED, 0.96), (UPDATE_REJECTED, 0.025), (VERSION_CREATED, 0.01), (ROLLED_BACK, 0.005)]


def parameter(number: int) -> str:
    return f"layers.{number // 6}.{('q', 'k', 'v', 'out', 'up', 'down')[number % 6]}.weight"


def load(url: str, count: int) -> None:
    """Fill an empty database with a log of `count` events of one model."""
    SqlStore.open(url).close()
    bulk.write(url, chain([_model()], _events(count)))


def _model() -> bulk.Parts:
    names = [f"weights/{parameter(number)}" for number in range(PARAMETERS)]
    return [(bulk.MODELS, (MODEL,)), *((bulk.PARAMETERS, (1, name)) for name in names)]


def _events(count: int) -> Iterator[bulk.Parts]:
    """The rows of every event."""
    chance = random.Random(1)
    kinds, kind_weights = zip(*KINDS, strict=True)
    actors, actor_weights = zip(*ACTORS, strict=True)
    kinds_of = chance.choices(kinds, kind_weights, k=count)
    actors_of = chance.choices([*actors, None], [*actor_weights, 1 - sum(actor_weights)], k=count)
    # Some parameters are updated a thousand times as often as others.
    weights = [1 / (1 + number) for number in range(PARAMETERS)]
    touched_of = chance.choices(range(PARAMETERS), weights, k=count)
    reasons, reason_weights = zip(*REASONS, strict=True)
    reasons_of = chance.choices(reasons, reason_weights, k=count)
    norms = random.Random(2)
    times: Counter[int] = Counter()
    salt = bytes(16)
    counts, node, state_seq = Counts(), 0, 0
    state, prev, number = bytes(32), None, None
    model = json.dumps(MODEL)
    checked: Event | None = None
    for seq in range(count):
        kind = kinds_of[seq] if seq else REGISTERED
        actor = actors_of[seq] if seq else None
        reason = reasons_of[seq] if seq else None
        metadata = f'{{"run":{seq // 5000},"stage":"{STAGES[seq % 7 % 3]}"}}' if seq % 2 else None
        key = (1 << SEQ_BITS) | seq
        changes = kind in STATE_CHANGING
        before, parent = state, node
        series = {UPDATED: UPDATES, UPDATE_REJECTED: UPDATES, VERSION_CREATED: VERSIONS}.get(kind)
        number = {UPDATES: counts.updates + 1, VERSIONS: counts.versions}.get(series or "")
        body: dict[str, Any] = {}
        touched: list[int] = []
        if kind in (REGISTERED, UPDATED):
            state, node = hashlib.sha256(b"%d" % seq).digest(), seq
        if kind == REGISTERED:
            body = Registered(PARAMETERS, 4 * PARAMETERS).to_json()
        elif kind == ROLLED_BACK:
            body = RolledBack(f"seq:{node}", node, node, state_seq, None, "manual").to_json()
        elif kind == UPDATE_REJECTED:
            body = UpdateRejected({}, "it would not do").to_json()
        elif kind == VERSION_CREATED:
            body = VersionCreated("a state", NamedState(state_seq, node, state)).to_json()
        if kind == UPDATED:
            touched = [touched_of[seq]]
            if seq % 10 == 0:
                touched = sorted({touched[0], (touched[0] + 1) % PARAMETERS, seq % PARAMETERS})
            names = [f"weights/{parameter(n)}" for n in touched]
            change = TensorChange("", before, state, 90, 12).to_json()
            body = {
                "delta_norm": norms.choice((0.5, 0.25 + norms.random())),
                "learning_rate": 0.01,
                "operation": "additive",
                "parameter": parameter(touched[0]),
                "post_metrics": {},
                "pre_metrics": {},
                "tensors": [{**change, "name": name} for name in names],
            }
            if len(names) > 1:  # it names one of them
                body["counted"] = names
        counts = Counts(
            applied=counts.applied + (kind == UPDATED),
            updates=counts.updates + (series == UPDATES),
            versions=counts.versions + (series == VERSIONS),
        )
        if changes:
            state_seq = seq
        active = max(counts.versions - 1, 0) if counts.versions else None
        recorded_at = START + 250 * seq
        note = Annotation(actor, reason, metadata, salt)
        digests = {name: note.digest(name) for name in ("actor", "reason", "metadata")}
        size = 90 * len(touched)
        request = hashlib.sha256(before).digest()
        piece = f'{{"digest":"{request.hex()}","size":{size}}}' if size else ""
        header = _header(
            ("active", active),
            _quoted("actor", digests),
            ("body", json.dumps(body, sort_keys=True, separators=(",", ":"))),
            (
                "counts",
                f'{{"applied":{counts.applied},"updates":{counts.updates},'
                f'"versions":{counts.versions}}}',
            ),
            ("format", 1),
            ("kind", f'"{kind}"'),
            _quoted("metadata", digests),
            ("model", model),
            ("node", node),
            ("number", number),
            ("parent", parent if changes and seq else None),
            ("payload", f"[{piece}]"),
            ("prev", prev and f'"{prev.hex()}"'),
            _quoted("reason", digests),
            ("recorded_at", recorded_at),
            ("request_digest", f'"{request.hex()}"'),
            ("seq", seq),
            ("series", series and f'"{series}"'),
            ("state_after", f'"{state.hex()}"'),
            ("state_before", f'"{before.hex()}"' if seq else None),
            ("state_seq", state_seq),
        )
        if seq < CHECKED:
            draft = Draft(
                body=BODIES[kind].from_json(body),
                state_after=state,
                target_node=node if kind == ROLLED_BACK else None,
                active=active,
                payload=(BlobRef(request, size),) if size else (),
            )
            checked = seal(
                draft, MODEL, checked, recorded_at, annotation=note, request_digest=request
            )
            assert checked.header == header, (checked.header, header)
        prev = leaf_hash(header)
        row = (key, 1, kind, recorded_at, node, parent if changes and seq else None, int(changes))
        parts: list[tuple[str, tuple[Any, ...]]] = [
            (bulk.EVENTS, (*row, 0, series, number, None, state, size, header, prev))
        ]
        for one in touched:
            times[one] += 1
            parts.append((bulk.TOUCHES, (one + 1, key, times[one], actor)))
        if note:
            parts.append((bulk.ANNOTATIONS, (key, kind, actor, reason, metadata, salt)))
        if series == VERSIONS:
            parts.append((bulk.LISTED, (1, number, key, node, 0)))
        yield parts


def _quoted(name: str, digests: dict[str, str | None]) -> tuple[str, object]:
    digest = digests[name]
    return name, digest and f'"{digest}"'


def _header(*fields: tuple[str, object]) -> bytes:
    inside = ",".join(f'"{name}":{value}' for name, value in fields if value is not None)
    return f"{{{inside}}}".encode()
