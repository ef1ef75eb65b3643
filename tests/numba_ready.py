"""Importing this readies numba for the processes that are forked then.

It lists what it can compile when it is first called, which takes longer than most commands do.
"""

from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
