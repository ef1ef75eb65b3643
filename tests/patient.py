"""httpx2's calls for tests: they wait for an answer as long as any load explains."""

import functools

import httpx2

from tests.waiting import PATIENCE_S

Client = functools.partial(httpx2.Client, timeout=PATIENCE_S)
delete = functools.partial(httpx2.delete, timeout=PATIENCE_S)
get = functools.partial(httpx2.get, timeout=PATIENCE_S)
post = functools.partial(httpx2.post, timeout=PATIENCE_S)
put = functools.partial(httpx2.put, timeout=PATIENCE_S)
