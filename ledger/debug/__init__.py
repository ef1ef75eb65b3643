"""Questions to a log when something went wrong: reads the log, and never changes it."""
