"""What the bridge writes: the one place where learning meets the ledger's writer.

Everything else here is about weights, activities and states; only this file knows how an event is
made of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from weightledger import Caller, Given, Plan, Verdict, Write
from weightledger.rules.dtesn import state as places

ANYONE = Caller()
"""Who asks where nobody says."""


def event(
    operation: str,
    parameter: str,
    stream: str,
    facts: Mapping[str, Any],
    *,
    remembered: Mapping[str, torch.Tensor] | None = None,
    dropped: Iterable[str] = (),
    weight: torch.Tensor | None = None,
    verdict: Verdict | None = None,
    given: Given | None = None,
) -> Plan:
    """One event about a parameter, in one of its streams; `facts` are JSON.

    `remembered` are tensors to keep in the stream, by the names that `rules.dtesn.state` lists,
    `dropped` are names to remove from it. `weight` is the parameter's new value; without one it
    stays. A verdict with a reason makes it a refusal, which changes neither. `given` is what
    leads to the same plan again.
    """
    prefix = places.place(parameter, stream)
    return Plan(
        {"operation": operation, "parameter": parameter, **facts},
        {} if weight is None else {parameter: Write(weight)},
        {**places.removed(prefix, dropped), **places.named(prefix, remembered or {})},
        verdict=verdict or Verdict(),
        given=given,
    )
