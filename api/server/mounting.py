"""A server below a path of somebody else's: what a proxy puts before each path, known here."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Mounted:
    """ASGI middleware in front of everything: links lead below `root`, whether or not the proxy
    takes it away from the paths that it passes on."""

    def __init__(self, app: ASGIApp, root: str) -> None:
        self.app = app
        trimmed = root.strip("/")
        self._root = f"/{trimmed}" if trimmed else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root and scope["type"] == "http":
            path: str = scope["path"]
            if path == self._root or path.startswith(self._root + "/"):
                path = path.removeprefix(self._root) or "/"
            scope = {**scope, "root_path": self._root, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)
