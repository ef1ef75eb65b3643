"""What one event did to one tensor, as its header says it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from weightledger.ledger.errors import CorruptLedger
from weightledger.ledger.events.canonical import Plain
from weightledger.ledger.tensors.spec import TensorSpec

# Forms in which a change is stored; permanent names, like the kinds.
FRAMES = "frames"  # the bit difference, in the payload; reversible
FACTORS = "factors.1"  # low-rank factors, in the payload; applied forwards only
WHOLE = "whole"  # the tensors before and after are blobs of their own; also adds and removes


class TensorChange(msgspec.Struct, frozen=True):
    """What one event did to one tensor.

    `name` is the full state name ("weights/fc.weight"); `before` and `after` are tensor digests;
    `size` is the length in bytes of the tensor's part of the event's payload, which holds the
    parts of all changed tensors in the order of this list; `changed` counts elements. In the
    form WHOLE `before` is None for a tensor that was added and `after` for one that was removed,
    and the specs say what it was and is; in the other forms a tensor keeps its spec.
    """

    name: str
    before: bytes | None
    after: bytes | None
    size: int
    changed: int
    form: str = FRAMES
    spec_before: TensorSpec | None = None
    spec_after: TensorSpec | None = None

    def to_json(self) -> Plain:
        fields = Plain(name=self.name, size=self.size, changed=self.changed)
        if self.before is not None:
            fields["before"] = self.before.hex()
        if self.after is not None:
            fields["after"] = self.after.hex()
        if self.form != FRAMES:
            fields["form"] = self.form
        for key, spec in (("was", self.spec_before), ("is", self.spec_after)):
            if spec is not None:
                fields[key] = {"dtype": spec.dtype, "shape": list(spec.shape)}
        return fields

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TensorChange":
        name, form = value["name"], value.get("form", FRAMES)
        if form not in (FRAMES, FACTORS, WHOLE):
            raise CorruptLedger(f"tensor {name!r} changed in a form that is not known: {form!r}")
        return cls(
            name=name,
            before=_digest(value.get("before")),
            after=_digest(value.get("after")),
            size=value["size"],
            changed=value["changed"],
            form=form,
            spec_before=_spec(name, value.get("was")),
            spec_after=_spec(name, value.get("is")),
        )

    def specs(
        self, at: TensorSpec | None, *, undo: bool
    ) -> tuple[TensorSpec | None, TensorSpec | None]:
        """The specs it leads from and to, in the direction of travel, for a tensor that is `at`."""
        if self.form != WHOLE:
            return at, at
        return (self.spec_after, self.spec_before) if undo else (self.spec_before, self.spec_after)

    def ends(self, *, undo: bool) -> tuple[bytes | None, bytes | None]:
        """The digests it leads from and to, in the direction of travel."""
        return (self.after, self.before) if undo else (self.before, self.after)


def _digest(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _spec(name: str, value: Mapping[str, Any] | None) -> TensorSpec | None:
    return None if value is None else TensorSpec(name, value["dtype"], tuple(value["shape"]))
