"""Freed memory that the C library keeps, so that taking it again costs nothing.

A block above a threshold is memory mapped for it alone, and what is free at the heap's end goes
back to the system: the next block of that size is then handed out page by page, which takes several
times as long as filling it. GNU's C library raises both bounds with each larger block that is freed
(https://man7.org/linux/man-pages/man3/mallopt.3.html, M_MMAP_THRESHOLD). So one is, before the
first that matters; others take no notice.
"""

import numpy as np


def keep_blocks(size: int) -> None:
    """Have blocks of up to `size` bytes (32 MiB at most) taken from memory that was freed.

    Twice as much is then kept for later, at most, by each heap, of which each thread may have one.
    """
    np.empty(size, np.uint8)  # freed at once; as nobody writes to it, it takes up no page
