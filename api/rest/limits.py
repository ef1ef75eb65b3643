"""Bodies over the limit: the framework refuses in plain text, this says it as our errors do."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightledger.api.rest.errors import TOO_LARGE, error_response

_STATUS = 413


class TooLargeInOurForm:
    """ASGI middleware: a plain-text 413 becomes an error body that says what to do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._refusal = error_response(_STATUS, TOO_LARGE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_ours(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == _STATUS:
                content_type = Headers(raw=message["headers"]).get("content-type", "")
                replaced = content_type.startswith("text/plain")
                if replaced:
                    await self._refusal(scope, receive, send)
            if not replaced:
                await send(message)

        await self.app(scope, receive, send_ours)
