"""Who waits for locked bytes is told when they come, and waits no longer than there is patience."""

import os
import threading
from pathlib import Path

import pytest

from tests.waiting import until
from weightledger.ledger.sql import byte_locks
from weightledger.ledger.sql.lock_waiter import LockWaiter

BYTES = 5, 3


def for_ever() -> bool:
    return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT)


def is_free(file: Path) -> bool:
    descriptor = opened(file)
    try:
        return byte_locks.take(descriptor, *BYTES)
    finally:
        os.close(descriptor)


def is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def threads() -> int:
    return sum(one.name == "ledger-turn" for one in threading.enumerate())


def test_one_thread_waits_for_one_lock_after_another(file: Path) -> None:
    before = threads()
    waiter = LockWaiter()
    for _ in range(3):
        holder, descriptor = opened(file), opened(file)
        byte_locks.take(holder, *BYTES)
        timer = threading.Timer(0.05, os.close, (holder,))
        timer.start()
        assert waiter.wait(descriptor, *BYTES, 60, for_ever)
        timer.join()
        assert not is_free(file)
        assert threads() == before + 1
        os.close(descriptor)
    waiter.end()
    until(lambda: threads() == before)


def test_what_comes_too_late_is_nobodys(file: Path) -> None:
    before = threads()
    holder, descriptor = opened(file), opened(file)
    byte_locks.take(holder, *BYTES)
    other = opened(file)
    assert byte_locks.take(descriptor, 0, 1)
    assert not LockWaiter().wait(descriptor, *BYTES, 0.01, iter([True, True, False]).__next__)
    assert not is_closed(descriptor)  # its thread waits with it
    assert byte_locks.take(other, 0, 1), "what was held meanwhile is not any more"
    os.close(other)
    os.close(holder)
    until(lambda: is_closed(descriptor) and is_free(file) and threads() == before)


def test_what_cannot_be_locked_is_an_error(file: Path) -> None:
    before = threads()
    descriptor = opened(file)
    os.close(descriptor)
    descriptor = os.open(file, os.O_PATH)
    with pytest.raises(OSError, match="Bad file descriptor"):
        LockWaiter().wait(descriptor, *BYTES, 60, for_ever)
    assert is_closed(descriptor)
    until(lambda: threads() == before)


@pytest.mark.parametrize("came", [False, True])
def test_who_is_interrupted_leaves_no_lock_behind(file: Path, came: bool) -> None:
    before = threads()
    holder, descriptor = opened(file), opened(file)
    byte_locks.take(holder, *BYTES)
    waiter = LockWaiter()
    real = waiter._came

    class Interrupted:
        """The lock, whose first wait is interrupted, before or after what is waited for came."""

        release = staticmethod(real.release)

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout >= 0:
                if came:
                    os.close(holder)
                    until(lambda: not real.locked())
                raise KeyboardInterrupt
            return real.acquire(blocking)

    waiter._came = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        waiter.wait(descriptor, *BYTES, 60, for_ever)
    if not came:
        os.close(holder)
    until(lambda: is_closed(descriptor) and is_free(file) and threads() == before)
