"""The way of a write: from a request to one committed, visible event."""
