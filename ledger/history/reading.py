"""One model's log opened by its database's URL, for work that is done elsewhere."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from weightledger.ledger.history.reader import History
from weightledger.ledger.store.sql_store import SqlStore


@contextlib.contextmanager
def reading(url: str, model: str) -> Iterator[History]:
    """The log as it is: nothing is created, upgraded or guarded. One thread works on it, for as
    many processes as there are cores do."""
    store = SqlStore.open(url, upgrade=False, guarded=False)
    with contextlib.closing(store), ThreadPoolExecutor(1) as pool:
        yield History(store.model(model), pool)
