"""The rules themselves, one file a family."""
