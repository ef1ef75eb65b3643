"""A wire between a replica and PostgreSQL that can be cut."""

import contextlib
import selectors
import socket
import threading

import sqlalchemy as sa

_CHUNK = 65_536
_LOOK_S = 0.05


class Proxy:
    """Hands bytes on to a PostgreSQL server, until it is cut; `url` leads through it."""

    def __init__(self, server: sa.URL) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._is_cut, self._ending = threading.Event(), threading.Event()
        port = self._listener.getsockname()[1]
        query = {name: value for name, value in server.query.items() if name != "host"}
        through = server.set(host="127.0.0.1", port=port, query=query)
        self.url = through.render_as_string(hide_password=False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        self._is_cut.set()

    def heal(self) -> None:
        self._is_cut.clear()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._listener.close()

    def _upstream(self) -> socket.socket:
        host = self._server.query.get("host") or self._server.host
        port = self._server.port or 5432
        if isinstance(host, str) and host.startswith("/"):
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{host}/.s.PGSQL.{port}")
            return upstream
        return socket.create_connection((str(host), port))

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._ending.is_set():
                if self._is_cut.is_set():
                    self._close_all(selector)
                for key, _ in selector.select(_LOOK_S):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif not self._is_cut.is_set():
                        self._pass_on(selector, key)
            self._close_all(selector)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        if self._is_cut.is_set():
            client.close()
            return
        upstream = self._upstream()
        self._pairs.add((client, upstream))
        selector.register(client, selectors.EVENT_READ, (upstream, (client, upstream)))
        selector.register(upstream, selectors.EVENT_READ, (client, (client, upstream)))

    def _pass_on(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        source = key.fileobj
        assert isinstance(source, socket.socket)
        other, pair = key.data
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(_CHUNK)
            if data:
                other.sendall(data)
        if not data:
            self._close(selector, pair)

    def _close(
        self, selector: selectors.BaseSelector, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        if pair in self._pairs:
            self._pairs.discard(pair)
            for one in pair:
                selector.unregister(one)
                one.close()

    def _close_all(self, selector: selectors.BaseSelector) -> None:
        for pair in list(self._pairs):
            self._close(selector, pair)
