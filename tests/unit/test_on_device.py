"""What compares tensors on a GPU says what comparing their bits on the CPU says.

It is written in torch alone, so it runs on the CPU too, which is how it is held against the other
here; where there is a GPU the same tests run on that.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.codecs import compare, encode_frame, equal, on_device
from weightledger.ledger.tensors.digest import CHUNK_BYTES, chunk_digests, rehash
from weightledger.ledger.tensors.lanes import TORCH_DTYPES, lanes
from weightledger.ledger.tensors.spec import DTYPES

EACH_DEVICE = pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
EACH_DTYPE = pytest.mark.parametrize("dtype", list(DTYPES))


def bits_of(dtype: str, count: int, seed: int) -> torch.Tensor:
    """Any bit patterns that the dtype has, NaN payloads among them."""
    random = np.random.default_rng(seed)
    element = DTYPES[dtype]
    high = 2 if dtype == "bool" else 256
    raw = random.integers(0, high, count * element.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(TORCH_DTYPES[dtype])


@EACH_DEVICE
@EACH_DTYPE
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_the_delta_is_the_one_that_the_bits_have(dtype: str, share: float, device: str) -> None:
    before, other = bits_of(dtype, 5000, 1), bits_of(dtype, 5000, 2)
    picked = torch.from_numpy(np.random.default_rng(3).random(5000) < share)
    after = before.clone()
    lanes(after).reshape(5000, -1)[picked.numpy()] = lanes(other).reshape(5000, -1)[picked.numpy()]
    element = DTYPES[dtype]
    expected = compare(lanes(before), lanes(after), element.ordered)
    there, moved = before.to(device), after.to(device)
    found = on_device.compare_there(there, moved, element)
    assert equal(found, expected)
    assert encode_frame(found) == encode_frame(expected)
    if element.lanes == 1:
        written = picked | (torch.arange(5000) % 7 == 0)
        where = torch.nonzero(written).view(-1)
        assert equal(on_device.compare_there(there, moved, element, where), expected)
    assert on_device.same_there(there, moved) == (lanes(before) == lanes(after)).all()


@EACH_DEVICE
@EACH_DTYPE
def test_only_the_chunks_that_are_asked_for_are_fetched(dtype: str, device: str) -> None:
    count = int(2.5 * CHUNK_BYTES) // DTYPES[dtype].itemsize
    tensor = bits_of(dtype, count, 4)
    chunks = bytearray(3 * 32)
    rehash(chunks, on_device.fetch(tensor.to(device), np.array([0, 2])), [0, 2])
    every = chunk_digests(lanes(tensor))
    assert chunks == every[:32] + bytes(32) + every[64:]


def test_a_log_is_the_same_whichever_way_tensors_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recorded(name: str) -> list[tuple[bytes, list[tuple[bytes | None, int]], bytes]]:
        generator = torch.Generator().manual_seed(5)
        base = {"w": torch.randn(3, 400_000, generator=generator), "z": torch.ones(10) + 1j}
        with Ledger.open(f"sqlite:///{tmp_path}/{name}.db") as ledger:
            log = ledger.model("m", base=base)
            at = torch.randperm(1_200_000, generator=generator)[:9000]
            log.apply(IncrementalUpdateRequest("w", torch.ones(9000), 1e-3, indices=at))
            log.apply(IncrementalUpdateRequest("w", torch.randn(3, 400_000, generator=generator)))
            base = {n: log.projector.engine.tensor(n).clone() for n in base}
            base["w"].view(-1)[700_000:700_100] *= 2
            base["z"][3] = 2j
            log.record(base)
            assert log.verify().ok
            history = ledger.history("m")
            return [
                (
                    event.state_after,
                    [(change.after, change.size) for change in event.changes],
                    history.store.payload(event),
                )
                for event in log.events()
                if event.changes
            ]

    by_bits = recorded("cpu")
    assert len(by_bits) == 3
    monkeypatch.setattr(on_device, "both_on", lambda one, other: asked.append(one) or True)
    assert recorded("device") == by_bits
    assert asked
