"""Measurements of the running model, and what follows from them."""
