"""Making a signed folder of a version, and bringing one to another version.

The first time every tensor is written and hashed. A folder that lies there, whole as this key has
signed it, is brought to another version by the differences that the log holds: applied to the files
in place, with every tensor's digest checked, and only files that changed hashed again. Whatever
stands in the way of that (another layout, a file that was tampered with, a way that leads over a
snapshot) leads to writing all of it.
"""

import tarfile
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from weightledger.ledger.bundles import folder as layouts
from weightledger.ledger.bundles import statement as statements
from weightledger.ledger.bundles.folder import INDEX, SIGNATURE, STATE, FileLayout
from weightledger.ledger.bundles.statement import Statement
from weightledger.ledger.debug.walking import Walker
from weightledger.ledger.errors import CorruptLedger, LedgerError, StorageError
from weightledger.ledger.events.changes import WHOLE
from weightledger.ledger.history.lineage import Path as Way
from weightledger.ledger.history.reader import History
from weightledger.ledger.history.replay import Move, split
from weightledger.ledger.history.steps import ReplayStep, apply_step
from weightledger.ledger.store.payloads import Portion
from weightledger.ledger.tensors.digest import content_digest
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.tensors.state import StateDigest

_IGNORED = (SIGNATURE,)
# More than this share of the model in differences is no small change: all of it is written anew.
_WORTHWHILE = 0.25


@dataclass(frozen=True, slots=True)
class SignedFolder:
    """A folder that was signed: which state it is, how many files it has, and how many of them, of
    how many bytes, were written to for it."""

    facts: Mapping[str, str]
    files: int
    written: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class _Held:
    """The state that a folder holds, as its signature says."""

    node: int
    state: StateDigest
    statement: Statement


class _Elsewhere(Exception):
    """The differences at hand do not lead from what the folder holds to what was asked for."""


def sign(history: History, to: str, folder: Path, key: ec.EllipticCurvePrivateKey) -> SignedFolder:
    """Have `folder` hold the state at a position, signed; see the top of this file.

    Raises what `History.rebuild` does, InvalidRequest for a folder of something else, StorageError
    when it cannot be written.
    """
    node = history.resolve(to).node
    facts = _facts(history, node)
    layouts.require_ours(folder)
    held = _held(history, folder, key)
    hashed: dict[str, bytes] | None = None
    if held is not None:
        try:
            state, hashed = _moved(history, folder, held, node)
        except (_Elsewhere, CorruptLedger, OSError, ValueError, KeyError):
            hashed = None  # what was half done is done anew
    if held is None or hashed is None:
        held = None
        state, hashed = _written(history, folder, node)
    layout = FileLayout.of(state)
    for name, text in layouts.texts(layout, state, facts).items():
        layouts.write_text(folder / name, text)
        hashed[name] = sha256(text.encode()).digest()
    files = {**(held.statement.files if held else {}), **hashed}
    statement = Statement(folder.resolve().name, files, _IGNORED, facts)
    layouts.write_text(folder / SIGNATURE, statements.sign(statement, key))
    written = [folder / name for name in hashed]
    return SignedFolder(facts, len(files), len(written), sum(p.stat().st_size for p in written))


def archive(history: History, to: str, file: Path, key: ec.EllipticCurvePrivateKey) -> SignedFolder:
    """Write a tar archive of a signed folder, `signed`; raises what `sign` does."""
    with tempfile.TemporaryDirectory(dir=file.parent) as there:
        folder = Path(there) / "signed"
        done = sign(history, to, folder, key)
        try:
            with tarfile.open(file, "w") as tar:
                tar.add(folder, arcname=folder.name)
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error}") from error
    return done


def _facts(history: History, node: int) -> dict[str, str]:
    """Which state it is, with the newest listed version that names it."""
    version = next((one.version_id for one in history.naming([node])), "")
    digest = history.require(node).state_after.hex()
    return {"model": history.model, "seq": str(node), "version": version, "digest": digest}


def _held(history: History, folder: Path, key: ec.EllipticCurvePrivateKey) -> _Held | None:
    """What a folder holds, where this key has signed it as a state of this log."""
    try:
        statement = statements.read((folder / SIGNATURE).read_text("utf-8"), key)
        small = {name: (folder / name).read_bytes() for name in (STATE, INDEX)}
        state = layouts.read_state(small[STATE])
        node, digest = int(statement.facts["seq"]), bytes.fromhex(statement.facts["digest"])
        known = all(statement.files[name] == sha256(text).digest() for name, text in small.items())
        event = history.require(node)
    except (OSError, ValueError, KeyError, TypeError, LedgerError):
        return None
    ours = statement.facts.get("model") == history.model and event.state_after == digest
    return _Held(node, state, statement) if known and ours and state.value == digest else None


def _written(history: History, folder: Path, node: int) -> tuple[StateDigest, dict[str, bytes]]:
    """Every tensor written; the state, and the SHA-256 of each file of tensors."""
    replayed = Walker(history).to(node)
    _unsign(folder)
    layout = FileLayout.of(replayed.digest)
    layouts.write_files(folder, layout, replayed.digest, replayed.tensors)
    names = list(layout.files)
    digests = history.pool.map(_sha256, [folder / name for name in names])
    return replayed.digest, dict(zip(names, digests, strict=True))


def _sha256(file: Path) -> bytes:
    with layouts.mapped(file) as one:
        return one.sha256()


def _moved(
    history: History, folder: Path, held: _Held, node: int
) -> tuple[StateDigest, dict[str, bytes]]:
    """The folder's files taken from the state they hold to another, in place; _Elsewhere when that
    cannot be. Gives the state, and the SHA-256 of each file that was written to."""
    expected = history.require(node).state_after

    def along(base: StateDigest, way: Way) -> tuple[StateDigest, dict[str, bytes]]:
        if way.start != held.node or base is not held.state:
            raise _Elsewhere
        steps, last = _steps(history, base, way)
        state = base.moved({name: (one.spec, one.digest) for name, one in last.items()})
        if state.value != expected:
            raise CorruptLedger(f"the way to event {node} leads to another state")
        _unsign(folder)
        return state, _applied(folder, held, steps, history.pool)

    return history.ways.travel(node, along, live=(held.node, held.state))


def _steps(
    history: History, base: StateDigest, way: Way
) -> tuple[dict[str, list[ReplayStep]], dict[str, ReplayStep]]:
    """What happens to each tensor on the way, and the last of it."""
    moves = [Move(event, undo=True) for event in history.require_all(way.undo)]
    moves += [Move(event, undo=False) for event in history.require_all(way.redo)]
    if sum(move.event.payload_size for move in moves) > _WORTHWHILE * _size(base):
        raise _Elsewhere
    payloads = history.store.payloads([move.event for move in moves])
    steps: dict[str, list[ReplayStep]] = {}
    last: dict[str, ReplayStep] = {}
    for move, payload in zip(moves, payloads, strict=True):
        for step in split(move.event, move.undo, Portion.whole(payload), base, last):
            name = step.change.name
            if step.change.form == WHOLE or step.spec != base.specs.get(name):
                raise _Elsewhere
            last[name] = step
            steps.setdefault(name, []).append(step)
    return steps, last


def _applied(
    folder: Path, held: _Held, steps: Mapping[str, list[ReplayStep]], pool: Executor
) -> dict[str, bytes]:
    """The SHA-256 of each file that the steps have changed; CorruptLedger where a file is not what
    was signed, or a tensor not what the log says it comes to."""
    layout = FileLayout.of(held.state)

    def advance(file: str) -> bytes:
        with layouts.mapped(folder / file) as pages:
            if pages.sha256() != held.statement.files.get(file):
                raise CorruptLedger(f"{file} is not what was signed")
            for name in layout.files[file]:
                for named in layout.names(name) if name in steps else ():
                    _advance(pages, named, steps[name])
            return pages.sha256()

    changed = [file for file, names in layout.files.items() if not steps.keys().isdisjoint(names)]
    return dict(zip(changed, pool.map(advance, changed), strict=True))


def _advance(pages: layouts.Mapped, name: str, steps: list[ReplayStep]) -> None:
    end = steps[-1]
    assert end.spec is not None, "no step of these takes a tensor away"
    tensor = pages.tensor(name, end.spec)
    for step in steps:
        apply_step(tensor, step)
    if content_digest(lanes(tensor, name)) != end.digest:
        raise CorruptLedger(f"{name} in the folder comes to other bits than the log says")


def _size(state: StateDigest) -> int:
    return sum(spec.nbytes for spec in state.specs.values())


def _unsign(folder: Path) -> None:
    """Take the signature away before what it covers is changed."""
    (folder / SIGNATURE).unlink(missing_ok=True)
