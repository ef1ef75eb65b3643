"""Trying a model out before it is served: can it do what is asked of it, and how far does it reach.

A config's `max_position_embeddings` is the size of a table, of which some families leave rows
unused (RoBERTa starts behind its padding index, OPT at 2). So the rows that a few tokens look up
are watched: the row of the last token, and how many are left behind it, give the limit.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SHORT, _LONG = 4, 5

_aten = torch.ops.aten


def reach(model: Any, token: int) -> int | None:
    """How many tokens the model's tables of positions have rows for; None without such tables.

    `token` is any that is not padding. Raises whatever the model does.
    """
    short, long = (_lookups(model, [token] * count) for count in (_SHORT, _LONG))
    limits = [
        one.rows - (one.last - _SHORT + 1)
        for one, other in zip(short, long, strict=False)
        if one.rows == other.rows and one.last + 1 == other.last and _by_token(one, other)
    ]
    return min(limits, default=None)


def ordinary(tokenizer: Any, model: Any) -> list[int]:
    """Five ids of tokens that are neither special nor padding; all different if it has as many."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    special = {*tokenizer.all_special_ids, padding}
    rows = model.get_input_embeddings().weight.shape[0]
    fitting = [token for token in range(min(rows, 1000)) if token not in special]
    return (fitting[3:] + fitting * 5)[:5]


def embedding(model: Any, ids: Sequence[int], pad: int) -> tuple[int, bool]:
    """The width of a model's vectors, and whether padding leaves those of shorter texts alone.

    Raises whatever the model does, and ValueError where it gives no vector for each token.
    """
    with torch.no_grad():
        alone = getattr(model(**inputs(model, [ids[:3]], pad)), "last_hidden_state", None)
        if not isinstance(alone, torch.Tensor) or alone.shape[:-1] != (1, 3):
            shape = list(alone.shape) if isinstance(alone, torch.Tensor) else None
            raise ValueError(f"expected a last_hidden_state of [1, 3, width], got {shape}")
        together = inputs(model, [ids[:3], ids[:5]], pad)
        if "attention_mask" not in together:
            return alone.shape[-1], False
        both = model(**together).last_hidden_state
    scale = float(alone.float().abs().max())
    far = float((both[:1, :3].float() - alone.float()).abs().max())
    # Other shapes round otherwise in the last digits; padding that is taken for text changes more.
    return alone.shape[-1], far <= scale * (2e-5 if alone.dtype.itemsize > 2 else 0.03)


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """What a forward must not change: plain attributes of submodules, and parameters."""

    attributes: Mapping[tuple[str, str], Any]
    versions: Mapping[str, int]

    @classmethod
    def of(cls, model: torch.nn.Module) -> "ForwardSettings":
        """As they are now."""
        attributes = {
            (name, key): value
            for name, part in model.named_modules()
            for key, value in vars(part).items()
            if isinstance(value, str | int | float | None)
        }
        # Buffers may be written: where a forward does so, each lease has its own (engines.scratch).
        return cls(attributes, {name: t._version for name, t in model.named_parameters()})

    def require_same(self, model: torch.nn.Module) -> None:
        """Raise ValueError if a forward since then has changed any.

        Otherwise an answer would depend on the answers before it: BigBird goes over to another
        attention for good after a short text, RWKV divides its weights.
        """
        now = ForwardSettings.of(model)
        for name, key in self.attributes.keys() & now.attributes.keys():
            if self.attributes[name, key] != now.attributes[name, key]:
                raise ValueError(f"the forward of submodule {name!r} changes its {key!r} for good")
        for name in self.versions.keys() & now.versions.keys():
            if self.versions[name] != now.versions[name]:
                raise ValueError(f"the forward writes into the tensor {name!r}")


def inputs(model: Any, texts: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """Tokenised texts as a model takes them: ids and, where it has one, the mask of padding."""
    longest = max(len(text) for text in texts)
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros((len(texts), longest), dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    taken: Mapping[str, Any] = inspect.signature(model.forward).parameters
    both = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    return {name: tensor for name, tensor in both.items() if name in taken}


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Rows of a table, how many of them were looked up, and the last of those."""

    rows: int
    count: int
    last: int


def _by_token(short: _Lookup, long: _Lookup) -> bool:
    """Whether each token had a row of its own, or all of a width that texts are filled up to.

    Relative positions are looked up for pairs of tokens, and have no limit.
    """
    return (short.count, long.count) == (_SHORT, _LONG) or short.count == long.count


def _lookups(model: Any, tokens: Sequence[int]) -> list[_Lookup]:
    watch = _Watch()
    with torch.no_grad(), watch:
        model(**inputs(model, [tokens], 0))
    return watch.seen


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is looked up in tables."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[_Lookup] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.embedding.default:
            self._note(args[0].shape[0], args[1])
        elif func is _aten.index_select.default:
            self._note(args[0].shape[args[1]], args[2])
        elif func is _aten.index.Tensor and len(args[1]) == 1 and args[1][0] is not None:
            self._note(args[0].shape[0], args[1][0])
        return func(*args, **(kwargs or {}))

    def _note(self, rows: int, where: torch.Tensor) -> None:
        if where.dtype in (torch.int64, torch.int32) and where.numel():
            self.seen.append(_Lookup(rows, where.numel(), int(where.max())))
