"""Work that is shared out comes back in order, whoever did it and however it ends."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from weightledger.ledger.tensors.side_by_side import side_by_side


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.mark.parametrize("ahead", [None, 1, 3, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_jobs(
    pool: ThreadPoolExecutor, count: int, ahead: int | None
) -> None:
    jobs = [*range(count)]
    assert [*side_by_side(lambda n: n * n, jobs, pool, ahead=ahead)] == [n * n for n in jobs]


def test_both_threads_work(pool: ThreadPoolExecutor) -> None:
    # Neither can go on alone: each waits within its job until the other has one too.
    meeting = threading.Barrier(2, timeout=600)

    def work(_: int) -> int:
        meeting.wait()
        return threading.get_ident()

    assert len({*side_by_side(work, [0, 1], pool)}) == 2


def test_no_more_are_begun_than_may_be_ahead(pool: ThreadPoolExecutor) -> None:
    begun: list[int] = []
    results = side_by_side(lambda n: begun.append(n), [*range(100)], pool, ahead=5)
    for taken, _ in enumerate(results):
        # One thread may look at the bound while the other passes it.
        assert max(begun) <= taken + 5 + 2
    assert sorted(begun) == [*range(100)]


def test_the_first_failure_is_raised_and_nothing_goes_on(pool: ThreadPoolExecutor) -> None:
    def work(n: int) -> int:
        if n in (3, 5):
            raise ValueError(f"job {n}")
        return n

    results = side_by_side(work, [*range(100)], pool)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="job 3"):
        next(results)
    assert [*results] == []


def test_an_interruption_of_the_helper_is_raised(pool: ThreadPoolExecutor) -> None:
    caller = threading.get_ident()
    interrupted = threading.Event()

    def work(n: int) -> int:
        if threading.get_ident() != caller:
            interrupted.set()
            raise KeyboardInterrupt
        assert interrupted.wait(600)
        return n

    with pytest.raises(KeyboardInterrupt):
        [*side_by_side(work, [0, 1, 2], pool)]


def test_who_stops_asking_leaves_no_work_behind(pool: ThreadPoolExecutor) -> None:
    at_work: set[int] = set()
    helped = threading.Event()
    caller = threading.get_ident()

    def work(n: int) -> int:
        at_work.add(n)
        if threading.get_ident() != caller:
            helped.set()
        else:
            assert helped.wait(600)
        at_work.remove(n)
        return n

    results = side_by_side(work, [*range(1000)], pool)
    assert next(results) == 0
    results.close()
    assert not at_work
    assert pool.submit(lambda: 7).result() == 7


def test_a_pool_that_is_busy_is_not_waited_for(pool: ThreadPoolExecutor) -> None:
    release = threading.Event()
    other = pool.submit(release.wait, 600)
    assert [*side_by_side(lambda n: n, [1, 2, 3], pool, ahead=1)] == [1, 2, 3]
    release.set()
    assert other.result()
