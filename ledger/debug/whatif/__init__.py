"""What a model would be had some events not happened: states that no event led to.

Two modes, which are named wherever such a state is shown. Mechanical: the bit differences of the
events are taken out, where nothing else touched the same elements later. Causal: every later
update is worked out again, from its operands, on the altered state.
"""
