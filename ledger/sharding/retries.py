"""What ranks record again under the same idempotency key: the event of the first time."""

from collections.abc import Mapping

import torch

from weightledger.ledger.errors import IdempotencyMismatch
from weightledger.ledger.sharding.chunks import ChunkLayout, agreed_on
from weightledger.ledger.sharding.ranks import Ranks
from weightledger.ledger.store import EventStore
from weightledger.ledger.tensors.digest import chunk_digests, root
from weightledger.ledger.tensors.lanes import lanes
from weightledger.ledger.writing.commands import command_digest


def request_digest(
    ranks: Ranks, layout: ChunkLayout, after: Mapping[str, torch.Tensor], metadata: str | None
) -> bytes:
    """The digest of the canonical request, 32 bytes, the same on every rank however it is cut.

    It is over the digests of the tensors as a state has them, of which every rank knows a part.
    """
    own = {name: bytes(chunk_digests(lanes(values))) for name, values in after.items()}
    told = ranks.tell_all(own)
    digests = {
        name: root(b"".join(told[rank][name] for rank in layout.order(name))).hex()
        for name in after
    }
    return command_digest("record_sharded", {"tensors": digests, "metadata": metadata})


def recorded_before(ranks: Ranks, store: EventStore, key: str, request: bytes) -> int | None:
    """The seq that this key has led to, as the first rank finds it; None for a new one.

    Raises IdempotencyMismatch on all ranks where it was another request.
    """

    def known() -> int | None:
        event = store.by_key(key) if ranks.rank == 0 else None
        if event is not None and event.request_digest != request:
            raise IdempotencyMismatch(
                f"idempotency key {key!r} was used for another request, {event.name}"
            )
        return None if event is None else event.seq

    seq: int | None = agreed_on(ranks, known)[0]
    return seq
