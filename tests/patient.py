"""httpx2's calls for tests: they wait for an answer as long as any load explains."""

import functools

import httpx2

from tests.waiting import PATIENCE_S

CERTIFICATES = httpx2.create_ssl_context()
"""Read once, for that takes 17 ms of processor time: each client reads them all again that is not
told of these, though servers of tests speak no TLS."""

_how = {"timeout": PATIENCE_S, "verify": CERTIFICATES}

Client = functools.partial(httpx2.Client, **_how)
delete = functools.partial(httpx2.delete, **_how)
get = functools.partial(httpx2.get, **_how)
post = functools.partial(httpx2.post, **_how)
put = functools.partial(httpx2.put, **_how)
