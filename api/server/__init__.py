"""The server: settings, what is served, start and stop."""
