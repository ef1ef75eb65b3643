"""The replies, for the document: routes give plain dicts, and the tests hold them against this."""

from pydantic import BaseModel, ConfigDict

Metrics = dict[str, float]
"""`accuracy`, `latency_ms`, `throughput`, `memory_usage_mb`, `timestamp`: what was measured."""


class Exact(BaseModel):
    """A reply that has these fields and no other."""

    model_config = ConfigDict(extra="forbid")
