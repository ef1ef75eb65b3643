"""RFC 6962 Merkle trees: roots, inclusion and consistency proofs, and checking them.

Pure functions over 32-byte hashes; leaves come hashed (`events.leaf_hash`). A tree of n leaves is
split after the largest power of two below n, so it is made of *perfect* subtrees: `Perfect` gives
the hash of one, by its level (2^level leaves) and its number among those of that level. Proofs and
roots ask for O(log n) of them. Section numbers are those of RFC 6962.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from weightledger.ledger.errors import ProofError

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()
MOST_LEAVES = 1 << 63

_NODE_PREFIX = b"\x01"

Perfect = Callable[[int, int], bytes]


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node (2.1)."""
    return sha256(_NODE_PREFIX + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root of a perfect tree over these hashes; their count is a power of two."""
    level = list(hashes)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [sha256(_NODE_PREFIX + left + right).digest() for left, right in pairs]
    return level[0]


def root(size: int, perfect: Perfect) -> bytes:
    """The Merkle tree hash of the first `size` leaves (2.1)."""
    return EMPTY_ROOT if size == 0 else _range_root(0, size, perfect)


def inclusion_proof(index: int, size: int, perfect: Perfect) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves, from its sibling up (2.1.1)."""
    if not 0 <= index < size:
        raise ProofError(f"leaf {index} is not in a tree of {size} leaves")
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_range_root(middle, stop, perfect))
            stop = middle
        else:
            path.append(_range_root(start, middle, perfect))
            start = middle
    return path[::-1]


def consistency_proof(first: int, second: int, perfect: Perfect) -> list[bytes]:
    """What proves that the first `first` of `second` leaves are as they were (2.1.2)."""
    if not 0 <= first <= second:
        raise ProofError(f"a tree of {first} leaves is no beginning of one of {second}")
    if first in (0, second):
        return []
    path: list[bytes] = []
    start, stop, known = 0, second, True  # known: the verifier has this subtree's root already
    while first != stop:
        middle = start + _split(stop - start)
        if first <= middle:
            path.append(_range_root(middle, stop, perfect))
            stop = middle
        else:
            path.append(_range_root(start, middle, perfect))
            start, known = middle, False
    return ([] if known else [_range_root(start, stop, perfect)]) + path[::-1]


def check_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes
) -> None:
    """Raise ProofError unless `proof` leads from leaf `index` to the root of `size` leaves."""
    if not 0 <= index < size <= MOST_LEAVES:
        raise ProofError(f"leaf {index} is not in a tree of {size} leaves")
    _require_hashes(leaf, expected, *proof)
    node, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError(f"the proof has {len(proof)} hashes, more than the path is long")
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError(f"the proof has {len(proof)} hashes, fewer than the path is long")
    _require_root(computed, expected, size)


def check_consistency(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> None:
    """Raise ProofError unless the tree of `first` leaves is a beginning of that of `second`."""
    if not 0 <= first <= second <= MOST_LEAVES:
        raise ProofError(f"a tree of {first} leaves is no beginning of one of {second}")
    _require_hashes(first_root, second_root, *proof)
    hashes = list(proof)
    if first in (0, second):
        if hashes:
            raise ProofError(f"the proof has {len(hashes)} hashes where it has to be empty")
        _require_root(first_root, EMPTY_ROOT if first == 0 else second_root, first)
        if second == 0:
            _require_root(second_root, EMPTY_ROOT, 0)
        return
    if first & (first - 1) == 0:  # a perfect tree: its root is the first hash
        hashes = [first_root, *hashes]
    if not hashes:
        raise ProofError("the proof is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofError(f"the proof has {len(proof)} hashes, more than the path is long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofError(f"the proof has {len(proof)} hashes, fewer than the path is long")
    _require_root(old, first_root, first)
    _require_root(new, second_root, second)


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _range_root(start: int, stop: int, perfect: Perfect) -> bytes:
    """The root over leaves start … stop − 1, a subtree of the whole: its left part is perfect."""
    size = stop - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return perfect(level, start >> level)
    middle = start + _split(size)
    return node_hash(_range_root(start, middle, perfect), _range_root(middle, stop, perfect))


def _require_hashes(*hashes: bytes) -> None:
    for one in hashes:
        if len(one) != HASH_BYTES:
            raise ProofError(f"a hash has {len(one)} bytes, not {HASH_BYTES}: {one.hex()}")


def _require_root(computed: bytes, expected: bytes, size: int) -> None:
    if computed != expected:
        raise ProofError(
            f"the root of {size} leaves is {expected.hex()}, the proof leads to {computed.hex()}"
        )
