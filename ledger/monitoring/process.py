"""Memory of this process."""

import psutil

_MB = 1 << 20


def memory_usage_mb() -> float:
    """Resident memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss) / _MB
