"""The digest of a state.

The byte format is permanent; anyone can recompute it with plain BLAKE3.

State
    BLAKE3 over one line per tensor and per alias, sorted by the UTF-8 bytes of the name:

        name TAB dtype TAB shape TAB hexdigest LF      weights/fc.weight  float32  10,64  ab12…
        alias TAB "=" TAB first-name LF                weights/head.weight  =  weights/fc.weight

    `dtype` is torch's name without its prefix, `shape` the decimal dimensions joined by ","
    (nothing for a 0-d tensor), `hexdigest` the tensor's digest in 64 lower-case digits. A tied
    tensor has one full line; its other names are aliases. Names hold no control characters.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

from blake3 import blake3

from weightledger.ledger.errors import NotFound, UnsupportedModel
from weightledger.ledger.tensors.digest import DIGEST_BYTES
from weightledger.ledger.tensors.persistent import PersistentMap
from weightledger.ledger.tensors.spec import TensorSpec, check_name

if TYPE_CHECKING:
    from weightledger.ledger.tensors.tree import ChainingTree

TREE_BYTES = 64 * 1024
"""Lines longer than this together are kept as a tree where a state is going to be changed often."""


class StateDigest:
    """The digest of a state, and the lines it is taken over; immutable.

    `specs` have full state names (`weights/fc.weight`); `digests` maps each of them to its
    tensor digest, `aliases` each further name of a tied tensor to its first name. Raises
    UnsupportedModel for a name that appears twice or cannot be written in a line, NotFound if
    a digest is missing or an alias points nowhere.
    """

    __slots__ = (
        "_changed",
        "_digests",
        "_heads",
        "_lines",
        "_starts",
        "_tree",
        "_value",
        "aliases",
        "specs",
    )

    def __init__(
        self,
        specs: Iterable[TensorSpec],
        digests: Mapping[str, bytes],
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        listed = list(specs)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType({s.name: s for s in listed})
        self.aliases: Mapping[str, str] = MappingProxyType(dict(aliases or {}))
        names = [s.name for s in listed] + list(self.aliases)
        # Code points sort as their UTF-8 bytes do.
        names.sort()
        for one, other in pairwise(names):
            if one == other:
                raise UnsupportedModel(f"name {one!r} appears twice in one state", param=one)
        self._heads: Mapping[str, bytes] = {s.name: _head(s) for s in listed}
        own = {name: _given(digests, name) for name in names if name not in self.aliases}
        self._digests = PersistentMap(own)
        self._lines = PersistentMap(
            {
                name: self._line(name, own[name]) if name in own else self._alias_line(name)
                for name in names
            }
        )
        self._value: bytes | None = None
        # Where each line starts, the tree of an earlier state, and the lines that differ from it.
        self._starts: list[int] = []
        self._tree: ChainingTree | None = None
        self._changed: frozenset[str] = frozenset()

    @property
    def value(self) -> bytes:
        """The digest of the state, 32 bytes."""
        if self._value is None:
            if self._tree is None:
                self._value = blake3(self._text()).digest()
            else:
                self._tree = self._tree.replaced(self._changed_chunks())
                self._changed = frozenset()
                self._value = self._tree.digest
        return self._value

    @property
    def digests(self) -> Mapping[str, bytes]:
        """The digest of every tensor, by full state name."""
        return self._digests

    def same(self, other: "StateDigest", name: str) -> bool:
        """Whether a tensor is the same in both states, or in neither: a tensor's digest is one of
        its bits, and says nothing of dtype and shape."""
        return self._digests.get(name) == other._digests.get(name) and (
            self.specs.get(name) == other.specs.get(name)
        )

    def keep_tree(self) -> None:
        """Keep BLAKE3's tree over the lines, so that states made of this one and of those that
        follow hash the lines that change; where they are few that would gain nothing.

        The first time in a process takes a second, on a new installation several, to compile.
        """
        if self._tree is not None:
            return
        text = self._text()
        if len(text) < TREE_BYTES:
            return
        from weightledger.ledger.tensors.tree import ChainingTree

        self._starts = [0, *accumulate(map(len, self._lines.in_order()))]
        self._tree = ChainingTree(text)

    def with_digests(self, digests: Mapping[str, bytes]) -> "StateDigest":
        """This state with other tensor digests.

        Costs what changed and, unless a tree is kept, one hash of the lines. Raises NotFound for a
        name that is not a tensor of this state.
        """
        lines = {name: self._line(name, digest) for name, digest in digests.items()}
        other = object.__new__(StateDigest)
        other.specs, other.aliases, other._heads = self.specs, self.aliases, self._heads
        other._digests = self._digests.replaced(digests)
        other._lines = self._lines.replaced(lines)
        other._value = None
        other._starts, other._tree = self._starts, self._tree
        other._changed = self._changed.union(lines) if self._tree else self._changed
        return other

    def moved(self, changes: Mapping[str, tuple[TensorSpec | None, bytes | None]]) -> "StateDigest":
        """This state with tensors changed, added, or (spec and digest None) removed."""
        if all(self.specs.get(name) == spec for name, (spec, _) in changes.items()):
            return self.with_digests({name: d for name, (_, d) in changes.items() if d is not None})
        specs, digests = dict(self.specs), dict(self._digests)
        for name, (spec, digest) in changes.items():
            if spec is None or digest is None:
                specs.pop(name, None)
                digests.pop(name, None)
            else:
                specs[name], digests[name] = spec, digest
        return StateDigest(specs.values(), digests, self.aliases)

    def _line(self, name: str, digest: bytes) -> bytes:
        head = self._heads.get(name)
        if head is None:
            raise NotFound(f"the state has no tensor {name!r}", param=name)
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"the digest of {name!r} is {len(digest)} bytes long, not 32")
        return b"%s%s\n" % (head, digest.hex().encode())

    def _text(self) -> bytes:
        return b"".join(self._lines.in_order())

    def _changed_chunks(self) -> dict[int, bytes]:
        """The chunks of the text that the changed lines reach into, by number."""
        from weightledger.ledger.tensors.tree import CHUNK_BYTES

        numbers: set[int] = set()
        for name in self._changed:
            place = self._lines.place(name)
            first, last = self._starts[place], self._starts[place + 1] - 1
            numbers.update(range(first // CHUNK_BYTES, last // CHUNK_BYTES + 1))
        return {number: self._chunk(number * CHUNK_BYTES, CHUNK_BYTES) for number in numbers}

    def _chunk(self, start: int, size: int) -> bytes:
        """So many bytes of the text from `start`, fewer at its end."""
        starts = self._starts
        first = bisect_right(starts, start) - 1
        last = min(bisect_right(starts, start + size - 1), len(starts) - 1)
        at = start - starts[first]
        return b"".join(self._lines.between(first, last))[at : at + size]

    def _alias_line(self, alias: str) -> bytes:
        check_name(alias)
        first = self.aliases[alias]
        if first not in self.specs:
            raise NotFound(f"alias {alias!r} names no tensor of the state: {first!r}", param=alias)
        return f"{alias}\t=\t{first}\n".encode()


def _head(spec: TensorSpec) -> bytes:
    shape = ",".join(map(str, spec.shape))
    return f"{spec.name}\t{spec.dtype}\t{shape}\t".encode()


def _given(digests: Mapping[str, bytes], name: str) -> bytes:
    digest = digests.get(name)
    if digest is None:
        raise NotFound(f"no digest was given for tensor {name!r}", param=name)
    return digest
