"""Deciding whether a state is worse than another: tests that may be looked at at any time.

`wagers` is the one piece of statistics, `comparisons` what is bet on, `deciders` the protocol and
the decider that puts them together under one error rate.
"""
