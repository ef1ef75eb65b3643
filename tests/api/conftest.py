"""One server for all tests of the faces that do not need a fresh one."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.serving import Server, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("api") / "data") as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client
