"""Tensors as bits, their digests, and the digest of a state."""
