"""Which layer and which module a tensor of a state belongs to, read off its name.

A module is the name without its last part: `encoder.layer.3.attention.query` of
`encoder.layer.3.attention.query.weight`. A layer is the name up to its first number
(`encoder.layer.3`), or its first part where there is none (`embeddings`). What stands beside the
weights has its own: `adapter/NAME/` before the key's layer, and `rule/PARAMETER` for the states of
that parameter's rules.
"""

from weightledger.ledger.adapters import PREFIX as ADAPTER
from weightledger.ledger.tensors.spec import WEIGHTS

RULE = "rule/"


def bare(full: str) -> str:
    """A tensor's name as people know it: without `weights/`."""
    return full.removeprefix(WEIGHTS)


def module_of(full: str) -> str:
    """The module of a tensor, by full state name."""
    if full.startswith(RULE):
        return _rule(full)
    start, name = _split(full)
    return start + (name.rpartition(".")[0] or name)


def layer_of(full: str) -> str:
    """The layer of a tensor, by full state name."""
    if full.startswith(RULE):
        return _rule(full)
    start, name = _split(full)
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdecimal():
            return start + ".".join(parts[: at + 1])
    return start + parts[0]


def _split(full: str) -> tuple[str, str]:
    """What stands before the name of a parameter, and that name."""
    if full.startswith(ADAPTER):
        start, _, key = full.removeprefix(ADAPTER).partition("/")
        return f"{ADAPTER}{start}/", key
    return "", bare(full)


def _rule(full: str) -> str:
    return "/".join(full.split("/")[:2])
