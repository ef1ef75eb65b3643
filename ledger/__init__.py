"""The core: events, stores, history, engines, and the way of a write. Knows no web, no rules."""
