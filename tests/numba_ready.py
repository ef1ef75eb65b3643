"""Importing this readies numba, and all it compiles, for the processes that are forked then.

It lists what it can compile when it is first called, which takes longer than most commands do. The
loops take half a minute where nothing has compiled them yet, in each process that wants them then.
"""

import numpy as np
from numba.core.registry import cpu_target

from weightledger.ledger.codecs import warming
from weightledger.ledger.tensors.tree import CHUNK_BYTES, ChainingTree

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()

warming.warm(map(np.dtype, (np.uint8, np.uint16, np.uint32, np.uint64)))
assert ChainingTree(bytes(2 * CHUNK_BYTES)).digest
