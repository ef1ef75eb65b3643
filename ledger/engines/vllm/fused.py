"""Which tensors a server loads together.

vLLM keeps some of a checkpoint's modules in one (q, k and v; gate and up) and reloads a module as a
whole: one that gets only some of its tensors keeps garbage in the rest. So a change of one tensor
sends every tensor of its module.
"""

from collections.abc import Collection, Mapping, Sequence

# As vLLM's models name them in `packed_modules_mapping`; a worker adds its own model's.
PACKED: Mapping[str, Sequence[str]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv": ("query", "key", "value"),
    "kv": ("k", "v"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "gate_up": ("w1", "w3"),
    "in_proj": ("in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
}
_EXPERTS = ("experts", "shared_experts")


def whole_groups(
    changed: Collection[str],
    names: Collection[str],
    packed: Mapping[str, Sequence[str]] = PACKED,
) -> list[str]:
    """`changed` and every other of `names` that is loaded together with one of them, in order."""
    into = {part: fused for fused, parts in packed.items() for part in parts}
    touched = {_module(name, into) for name in changed}
    return [name for name in names if _module(name, into) in touched]


def _module(name: str, into: Mapping[str, str]) -> str:
    """The module that loads a tensor: its own, the fused one, or all experts of a layer."""
    path = name.split(".")[:-1]
    for at, part in enumerate(path):
        if part in _EXPERTS[:1]:
            return ".".join(path[: at + 1])
    if path:
        path[-1] = into.get(path[-1], path[-1])
    return ".".join(path)
