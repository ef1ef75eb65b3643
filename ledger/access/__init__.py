"""Who may come in: API keys, as a log of what was done to them."""
