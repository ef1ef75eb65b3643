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

from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType

from blake3 import blake3

from weightledger.ledger.errors import NotFound, UnsupportedModel
from weightledger.ledger.tensors.digest import DIGEST_BYTES
from weightledger.ledger.tensors.spec import TensorSpec, check_name


class StateDigest:
    """The digest of a state, and the lines it is taken over; immutable.

    `specs` have full state names (`weights/fc.weight`); `digests` maps each of them to its
    tensor digest, `aliases` each further name of a tied tensor to its first name. Raises
    UnsupportedModel for a name that appears twice or cannot be written in a line, NotFound if
    a digest is missing or an alias points nowhere.
    """

    __slots__ = ("_digests", "_heads", "_lines", "_value", "aliases", "specs")

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
        self._heads: dict[str, bytes] = {s.name: _head(s) for s in listed}
        self._digests: dict[str, bytes] = {}
        self._lines: dict[str, bytes] = {}
        self._value: bytes | None = None
        for name in names:
            if name in self.aliases:
                self._lines[name] = self._alias_line(name)
            else:
                self._set(name, _given(digests, name))

    @property
    def value(self) -> bytes:
        """The digest of the state, 32 bytes."""
        if self._value is None:
            self._value = blake3(b"".join(self._lines.values())).digest()
        return self._value

    @property
    def digests(self) -> Mapping[str, bytes]:
        """The digest of every tensor, by full state name."""
        return MappingProxyType(self._digests)

    def with_digests(self, digests: Mapping[str, bytes]) -> "StateDigest":
        """This state with other tensor digests; costs what changed, and one hash of the lines.

        Raises NotFound for a name that is not a tensor of this state.
        """
        other = object.__new__(StateDigest)
        other.specs, other.aliases, other._heads = self.specs, self.aliases, self._heads
        other._digests, other._lines = self._digests.copy(), self._lines.copy()
        other._value = None
        for name, digest in digests.items():
            other._set(name, digest)
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

    def _set(self, name: str, digest: bytes) -> None:
        head = self._heads.get(name)
        if head is None:
            raise NotFound(f"the state has no tensor {name!r}", param=name)
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"the digest of {name!r} is {len(digest)} bytes long, not 32")
        self._digests[name] = digest
        self._lines[name] = b"%s%s\n" % (head, digest.hex().encode())

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
