"""The metrics there are: their names, what they are measured in, and which way is better.

One table for everything that measures, is told or decides. The first four are the specification's.
"""

import re
from dataclasses import dataclass
from typing import Literal

Per = Literal["request", "moment", "evaluation"]
"""What one value belongs to: a finished inference, a moment, or a run of an evaluator."""


LARGEST = 1e100
"""No value is further from 0: sums of squares stay finite."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `better` says which direction an improvement has, None where neither is one.

    Values are within `[least, most]`.
    """

    name: str
    unit: str
    per: Per
    better: Literal["higher", "lower"] | None
    help: str
    least: float = 0.0
    most: float = LARGEST


_TABLE = (
    Metric("accuracy", "", "evaluation", "higher", "Share of right answers.", most=1.0),
    Metric("latency_ms", "ms", "request", "lower", "How long the model held a request."),
    Metric("throughput", "1/s", "moment", "higher", "Inferences finished in a second."),
    Metric("memory_usage_mb", "MiB", "moment", "lower", "Resident memory of the process in use."),
    Metric("queue_ms", "ms", "request", "lower", "How long a request waited for its turn."),
    Metric("items", "", "request", None, "Rows, texts or tokens that a request was answered with."),
    Metric(
        "items_per_second",
        "1/s",
        "request",
        "higher",
        "Rows, texts or tokens of a request for a second of serving it.",
    ),
    Metric(
        "failed",
        "",
        "request",
        "lower",
        "1 for a request that the model failed on, else 0.",
        most=1.0,
    ),
    Metric("device_memory_mb", "MiB", "moment", "lower", "Allocated memory of the accelerator."),
    Metric("time_to_first_token_ms", "ms", "request", "lower", "Until the first token."),
    Metric("inter_token_latency_ms", "ms", "request", "lower", "Between two tokens."),
    Metric("tokens_per_second", "1/s", "moment", "higher", "Tokens generated in a second."),
    Metric("kv_cache_usage", "", "moment", None, "Share of the key-value cache in use.", most=1.0),
    Metric("error", "", "evaluation", "lower", "Mean squared error of a regression."),
    Metric(
        "similarity",
        "",
        "evaluation",
        "higher",
        "Rank correlation with known similarities.",
        -1.0,
        1.0,
    ),
    Metric("perplexity", "", "evaluation", "lower", "Of a text, exp of the mean loss of a token."),
)
METRICS = {metric.name: metric for metric in _TABLE}
EVALUATED = frozenset(metric.name for metric in _TABLE if metric.per == "evaluation")
"""Those that only an evaluator gives."""

CUSTOM = re.compile(r"custom\.[a-z0-9_]{1,56}")
"""Names that anybody may push under; the ledger knows nothing of their meaning."""


PATTERN = f"^({'|'.join(METRICS)}|{CUSTOM.pattern})$"
"""Every name that is taken, as a regular expression for documents."""


def is_known(name: str) -> bool:
    """Whether samples of that name are taken."""
    return name in METRICS or CUSTOM.fullmatch(name) is not None


def range_of(name: str) -> tuple[float, float]:
    """The least and the most that a value of that name may be."""
    metric = METRICS.get(name)
    return (metric.least, metric.most) if metric is not None else (-LARGEST, LARGEST)


def higher_is_better(name: str) -> bool:
    """Whether more of it is an improvement; what is not in the table is a cost."""
    metric = METRICS.get(name)
    return metric is not None and metric.better == "higher"
