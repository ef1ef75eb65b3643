"""Who waits for a turn of a file, in the queue or in a box, by the locks that they hold there."""

from weightledger.ledger.sql import byte_locks
from weightledger.ledger.sql.file_turns import FileLock

QUEUE = 2**62  # those beyond wait for what they left to others
ALL = 2**63 - 1


def places(lock: FileLock, first: int = 1, stop: int = ALL) -> int:
    """How many places others have there. A place is a byte: who is next holds all before his, too,
    and that a moment later."""
    if first >= stop:
        return 0
    held = byte_locks.held_by_others(lock._opened(), first, stop - first)
    if held is None:
        return 0
    is_place = held.stop - held.start == 1
    return is_place + places(lock, first, held.start) + places(lock, held.stop, stop)
