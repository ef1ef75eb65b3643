"""From the log to live weights."""
