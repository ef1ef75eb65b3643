"""Measurements: ours beside peers, in one run, interleaved, with the machine they ran on."""
