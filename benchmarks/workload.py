"""Workload L: 100 MB fp32 in 25 tensors, each update touching 1 % of the weights, scattered.

    python -m benchmarks.workload [--rounds N] [--database URL]

Ours beside torch.save, safetensors and XOR + zstd in one run, with the machine's own limits (copy,
hash, write and sync) measured beside them. Every state that is restored is compared bit for bit.
"""

import argparse
import io
import os
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file, save_file

from benchmarks.measure import Report, clock, interleaved
from ledger import IncrementalUpdateRequest, Ledger, Log
from ledger.digest import chunk_digests
from ledger.tensors import lanes

TENSORS = 25
ELEMENTS = 1_000_000
SHARE = 0.01
MB = 1_000_000


def model(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """25 tensors of a million weights each, as a layer is initialised."""
    return {
        f"layer{n}": torch.randn(1000, 1000, generator=generator) * 0.02 for n in range(TENSORS)
    }


def step(state: dict[str, torch.Tensor], generator: torch.Generator) -> None:
    """Move 1 % of each tensor's weights by about 1e-3, in place."""
    for tensor in state.values():
        count = int(ELEMENTS * SHARE)
        where = torch.randint(0, ELEMENTS, (count,), generator=generator)
        tensor.view(-1)[where] += 1e-3 * torch.randn(count, generator=generator)


def sync_write(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until a file that was written is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class XorZstd:
    """What RL frameworks do: XOR with the last state, compress all of it, write it."""

    def __init__(self, state: dict[str, torch.Tensor], path: Path) -> None:
        self._last = {name: lanes(tensor).copy() for name, tensor in state.items()}
        self._path = path
        self.size = 0

    def record(self, state: dict[str, torch.Tensor]) -> None:
        compressor = zstandard.ZstdCompressor(level=1, threads=2)
        parts = []
        for name, tensor in state.items():
            now = lanes(tensor)
            parts.append(compressor.compress((now ^ self._last[name]).tobytes()))
            self._last[name][:] = now
        data = b"".join(parts)
        self.size = len(data)
        sync_write(self._path, data)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(np.array_equal(lanes(one[name]), lanes(other[name])) for name in one)


def recording(
    report: Report,
    log: Log,
    state: dict[str, torch.Tensor],
    rounds: int,
    folder: Path,
    generator: torch.Generator,
) -> None:
    """One update at a time, by comparing with the last state, durable when it returns."""
    xor = XorZstd(state, folder / "xor.zst")
    # Each system sees the same steps: the state moves before ours runs, the peers follow.
    buffer = bytearray(ELEMENTS * 4)

    def ours(_: int) -> None:
        log.record(state)

    def torch_save(_: int) -> None:
        out = io.BytesIO()
        torch.save(state, out)
        sync_write(folder / "state.pt", out.getbuffer())

    def safetensors(_: int) -> None:
        save_file(state, folder / "state.safetensors")
        sync_file(folder / "state.safetensors")

    def hashing(_: int) -> None:
        for tensor in state.values():
            chunk_digests(lanes(tensor))

    def copying(_: int) -> None:
        for tensor in state.values():
            buffer[:] = lanes(tensor).view(np.uint8).data

    def written(_: int) -> None:
        sync_write(folder / "limit", bytes(MB))

    medians = interleaved(
        rounds,
        step=lambda _: step(state, generator),
        ours=ours,
        torch_save=torch_save,
        safetensors=safetensors,
        xor_zstd=lambda _: xor.record(state),
        hashing=hashing,
        copying=copying,
        written=written,
    )
    head = log.live.head
    hashed = medians["hashing"]
    report.add("limit: copy 100 MB", 1e3 * medians["copying"], "ms")
    report.add("limit: hash 100 MB, one thread", 1e3 * hashed, "ms")
    report.add("limit: write and sync 1 MB", 1e3 * medians["written"], "ms")
    report.add(
        "record by comparing",
        1e3 * medians["ours"],
        "ms",
        ratio=medians["ours"] / hashed,
        of="hash",
        goal="≤ 3.6 × hash",
        ok=medians["ours"] <= 3.6 * hashed,
    )
    changed = sum(change.changed for change in head.changes)
    per_weight = head.payload_size / changed
    report.add("  bytes an update", head.payload_size / MB, "MB")
    report.add("  bytes per changed weight", per_weight, "B", goal="≤ 3.9", ok=per_weight <= 3.9)
    for name, size in (
        ("torch_save", (folder / "state.pt").stat().st_size),
        ("safetensors", (folder / "state.safetensors").stat().st_size),
        ("xor_zstd", xor.size),
    ):
        took = medians[name]
        report.add(f"peer: {name}", 1e3 * took, "ms", ratio=took / medians["ours"], of="ours")
        report.add("  bytes an update", size / MB, "MB")


def with_indices(report: Report, log: Log, rounds: int, generator: torch.Generator) -> None:
    """Updates that say which weights they change: 1 % of every tensor, and 25 % of one."""
    count, quarter = int(ELEMENTS * SHARE), ELEMENTS // 4

    def request(name: str, many: int) -> IncrementalUpdateRequest:
        where = torch.randperm(ELEMENTS, generator=generator)[:many].sort().values
        values = torch.randn(many, generator=generator)
        return IncrementalUpdateRequest(name, values, 1e-3, indices=where)

    names = sorted(log.specs)
    scattered = [[request(name, count) for name in names] for _ in range(2)]
    dense = [request(names[0], quarter) for _ in range(2)]
    held = [lanes(log.projector.engine.tensor(name)) for name in names]

    def hashing(_: int) -> None:
        for bits in held:
            chunk_digests(bits)

    medians = interleaved(
        rounds,
        scattered=lambda n: log.apply_batch(scattered[n % 2]) and None,
        one=lambda n: log.apply(dense[n % 2]) and None,
        hashing=hashing,
    )
    took, hashed = medians["scattered"], medians["hashing"]
    report.add(
        "record, indices given, 1 % of every tensor",
        1e3 * took,
        "ms",
        ratio=took / hashed,
        of="hash",
        goal="≤ 2.8 × hash",
        ok=took <= 2.8 * hashed,
    )
    report.add(
        "record, indices given, 25 % of one tensor",
        1e3 * medians["one"],
        "ms",
        goal="≤ 12 ms",
        ok=medians["one"] <= 0.012,
    )


def moving(
    report: Report,
    ledger: Ledger,
    log: Log,
    state: dict[str, torch.Tensor],
    folder: Path,
    generator: torch.Generator,
) -> None:
    """Rollback over 50 updates, restore of any version, naming one."""
    first = log.create_version("before fifty").name
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(50):
        step(state, generator)
        log.record(state)
    last = log.create_version("after fifty").name
    with clock() as took:
        log.rollback(first)
    live = {name: log.projector.engine.tensor(name) for name in state}
    assert same(live, kept)
    report.add(
        "roll back 50 updates, verified", 1e3 * took(), "ms", goal="≤ 130 ms", ok=took() <= 0.130
    )
    save_file(kept, folder / "base.safetensors")

    def load_and_hash(_: int) -> None:
        for tensor in load_file(folder / "base.safetensors").values():
            chunk_digests(lanes(tensor))

    restored: dict[str, torch.Tensor] = {}

    def restore(n: int) -> None:
        restored.update(ledger.history(log.history.model).state((first, last)[n % 2]))

    medians = interleaved(6, load=load_and_hash, restore=restore)
    assert same(restored, state)
    report.add(
        "restore a version (page cache warm)",
        1e3 * medians["restore"],
        "ms",
        ratio=medians["restore"] / medians["load"],
        of="load + hash safetensors",
        goal="≤ 5 ×",
        ok=medians["restore"] <= 5 * medians["load"],
    )
    named = interleaved(30, name=lambda n: log.create_version(f"v{n}") and None)
    report.add(
        "create_version", 1e3 * named["name"], "ms", goal="≤ 1.5 ms", ok=named["name"] <= 0.0015
    )


def small_updates(report: Report, ledger: Ledger, folder: Path) -> None:
    """2 KB payloads one by one, applied and durable, beside bare SQLite writing the same rows."""
    log = ledger.model("small", base={"w": torch.randn(10, 64)})
    rounds, each = 10, 50
    data = [torch.randn(10, 64) for _ in range(each)]

    def ours(_: int) -> None:
        for operand in data:
            log.apply(IncrementalUpdateRequest("w", operand, 0.001))

    event = log.apply(IncrementalUpdateRequest("w", data[0], 0.001))
    header, payload = event.header, log.history.store.payload(event)
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE events (key INTEGER PRIMARY KEY, a, b, c, d, header, hash, payload)")
    bare.execute("CREATE TABLE touches (p, k, PRIMARY KEY (p, k)) WITHOUT ROWID")

    def peer(n: int) -> None:
        for key in range(n * each, (n + 1) * each):
            bare.execute("BEGIN IMMEDIATE")
            row = (key, "updated", key, key, key - 1, header, event.hash, payload)
            bare.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            bare.execute("INSERT INTO touches VALUES (?, ?)", (1, key))
            bare.execute("COMMIT")

    medians = interleaved(rounds, ours=ours, peer=peer)
    bare.close()
    share = medians["peer"] / medians["ours"]
    report.add("small update, Python API", 1e6 * medians["ours"] / each, "µs")
    report.add(
        "peer: bare sqlite3, two inserts",
        1e6 * medians["peer"] / each,
        "µs",
        ratio=share,
        of="ours",
        goal="ours ≥ 45 % of its rate",
        ok=share >= 0.45,
    )


def batches(report: Report, ledger: Ledger) -> None:
    """Small updates of one matrix, a thousand in each event."""
    log = ledger.model("batches", base={"w": torch.randn(16, 16)})
    each = 1000
    updates = [IncrementalUpdateRequest("w", torch.randn(16, 16), 0.001) for _ in range(each)]
    medians = interleaved(8, ours=lambda _: log.apply_batch(updates) and None)
    rate = each / medians["ours"]
    report.add(
        "small updates (1 KB) inside batch events",
        rate,
        "/s",
        goal="≥ 30,000/s",
        ok=rate >= 30_000,
    )


def disk(report: Report, path: Path, log: Log) -> None:
    deltas = sum(event.payload_size for event in log.events())
    base = TENSORS * ELEMENTS * 4
    used = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
    report.add(
        "disk for history beyond the base",
        (used - base) / MB,
        "MB",
        ratio=(used - base) / deltas,
        of="sum of deltas",
        goal="≤ 2 ×",
        ok=used - base <= 2 * deltas,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--database", default=None, help="instead of a SQLite file")
    given = options.parse_args()
    generator = torch.Generator().manual_seed(0)
    report = Report("Workload L: 100 MB fp32, 25 tensors, 1 % of the weights an update")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "ledger.db"
        with Ledger.open(given.database or f"sqlite:///{path}") as ledger:
            state = model(generator)
            log = ledger.model("workload-l", base=state)
            recording(report, log, state, given.rounds, folder, generator)
            moving(report, ledger, log, state, folder, generator)
            if given.database is None:
                disk(report, path, log)
            with_indices(report, log, given.rounds, generator)
            small_updates(report, ledger, folder)
            batches(report, ledger)
    report.finish("workload_l")


if __name__ == "__main__":
    main()
