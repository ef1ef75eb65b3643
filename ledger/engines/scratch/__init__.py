"""What the forwards of a module write into the modules themselves, read off their code.

Some models keep things on themselves while they run: frequencies for the length at hand, masks, the
last hidden state, counters of steps. Two requests at once then disturb each other. Running a model
once does not show it (many write only for long inputs), and needs an input; its code does. What is
followed: `forward`, hooks, methods of the module and functions that get the module or what it
holds. What code does that cannot be read, or through other names, is not found here.

`reading` finds the code that a module runs, `scope` reads one function of it, `source` has the code
as a tree, and `paths` are the ways from a module to what is written.
"""

from collections.abc import Mapping

from torch import nn

from weightledger.ledger.engines.scratch.paths import ANY, Path, holder_of
from weightledger.ledger.engines.scratch.reading import Reading, scales_down

__all__ = ["ANY", "Path", "scratches"]


def scratches(module: nn.Module) -> Mapping[str, frozenset[str]]:
    """The attributes that forwards write, by the name of the submodule that holds them.

    Names of buffers are among them; ANY stands for one that is not known. Parameters are not: but
    for embeddings with `max_norm`, whose rows are scaled down in place as they are looked up.
    """
    names = {id(part): name for name, part in module.named_modules()}
    written: dict[str, set[str]] = {}
    for part in module.modules():
        for start, path in Reading(part).paths():
            holder, attribute = holder_of(start, path)
            name = names.get(id(holder))
            # Who writes to parameters changes the model behind the ledger, which notices it.
            changes_model = holder._parameters.get(attribute) is not None
            if name is not None and (scales_down(holder) or not changes_model):
                written.setdefault(name, set()).add(attribute)
    return {name: frozenset(attributes) for name, attributes in written.items()}
