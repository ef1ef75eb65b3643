"""How small a coder that sees no context could make a delta: what bytes are held against."""

from collections.abc import Sequence

import numpy as np

from weightledger.ledger.codecs import Delta

# Differences are told apart by their length in bits and this many bits below the first; what lies
# further below is taken to be noise.
_LEADING = 4


def bytes_per_change(deltas: Sequence[Delta]) -> float:
    """Bytes a changed weight takes, of 16 or 32 bits: its position, its sign and its difference."""
    changed, bits = 0, 0.0
    counts = np.zeros(64 << _LEADING, np.int64)
    for delta in deltas:
        signed = delta.difference.view(f"i{delta.difference.itemsize}")
        magnitude = np.abs(signed[signed != 0].astype(np.int64))
        bits += delta.count * _entropy(np.array([len(magnitude), delta.count - len(magnitude)]))
        length = np.frexp(magnitude.astype(np.float64))[1]
        noise = np.maximum(length - 1 - _LEADING, 0)
        bits += len(magnitude) + float(noise.sum())
        leading = (magnitude >> noise) & ((1 << _LEADING) - 1)
        counts += np.bincount((length << _LEADING) + leading, minlength=len(counts))
        changed += len(magnitude)
    bits += changed * _entropy(counts)
    return bits / 8 / changed


def _entropy(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Bits a symbol, from how often each was seen."""
    seen = counts[counts > 0] / counts.sum()
    return float(-(seen * np.log2(seen)).sum())
