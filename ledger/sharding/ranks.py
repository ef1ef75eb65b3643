"""What ranks say to each other: bytes, over a group of their own on the CPU.

Nothing is pickled. A rank that is gone is noticed by the others in the next call.
"""

import datetime
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from weightledger.ledger.errors import InvalidRequest, LedgerError, RankLost
from weightledger.ledger.parallel.doing import described, result_of

_HEAD, _SHORT = 8, 1 << 16  # bytes: how long what follows is, and what goes along at once


class Ranks:
    """All ranks of the process group; every method is called by all of them together."""

    def __init__(self, timeout_s: float) -> None:
        """InvalidRequest where torch.distributed was not initialised."""
        if not dist.is_available() or not dist.is_initialized():
            raise InvalidRequest(
                "a sharded model is recorded by all ranks: torch.distributed has no process group"
            )
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        # Of their own, so that nothing is mixed up with the training's; plain bytes need no GPU.
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def close(self) -> None:
        dist.destroy_process_group(self._group)

    def tell_all(self, value: Any) -> list[Any]:
        """What every rank says, by rank."""
        data = msgspec.msgpack.encode(value)
        first = self._gathered(len(data).to_bytes(_HEAD, "little") + data[:_SHORT], _HEAD + _SHORT)
        sizes = [int.from_bytes(one[:_HEAD], "little") for one in first]
        if max(sizes) <= _SHORT:  # nearly always: one journey, not two
            whole = [one[_HEAD : _HEAD + size] for one, size in zip(first, sizes, strict=True)]
        else:
            rest = self._gathered(data, max(sizes))
            whole = [one[:size] for one, size in zip(rest, sizes, strict=True)]
        return [msgspec.msgpack.decode(one) for one in whole]

    def _gathered(self, data: bytes, size: int) -> list[bytes]:
        """What every rank has, filled up to so many bytes."""
        room = [torch.empty(size, dtype=torch.uint8) for _ in range(self.size)]
        with self._together():
            dist.all_gather(room, _tensor(data.ljust(size, b"\0")), group=self._group)
        return [one.numpy().tobytes() for one in room]

    def agree(self, value: Any = None, error: Exception | None = None) -> list[Any]:
        """What every rank says, by rank; raises on all of them what one of them could not do."""
        if error is None:
            said: dict[str, Any] = {"result": value}
        elif isinstance(error, LedgerError):
            said = {"error": described(error)}
        else:
            said = {"error": {"class": "LedgerError", "message": repr(error), "fields": {}}}
        told = self.tell_all(said)
        for rank, one in enumerate(told):
            if "error" in one and self.size > 1 and one["error"]["class"] != "ReplicasDiverge":
                one["error"]["message"] = f"rank {rank}: {one['error']['message']}"
        return [result_of(one) for one in told]

    def swap(
        self, outgoing: Mapping[int, torch.Tensor], incoming: Mapping[int, int]
    ) -> dict[int, torch.Tensor]:
        """Send bytes to some ranks and receive so many from others."""
        room = {source: torch.empty(size, dtype=torch.uint8) for source, size in incoming.items()}
        with self._together():
            work = [dist.irecv(one, src, group=self._group) for src, one in sorted(room.items())]
            work += [
                dist.isend(one.contiguous(), dst, group=self._group)
                for dst, one in sorted(outgoing.items())
            ]
            for one in work:
                if one is not None:
                    one.wait()
        return room

    def broadcast(self, values: torch.Tensor, source: int) -> None:
        """Give `values`, flat bytes, what they are on the rank `source`."""
        with self._together():
            dist.broadcast(values, source, group=self._group)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankLost(
                f"a rank is gone or does not answer, and nothing was recorded: {error}"
            ) from error


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
