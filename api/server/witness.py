"""`weightledger witness serve`: a witness over HTTP, as c2sp.org/tlog-witness says."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from weightledger.api.server.connections import limited, raise_limit, room
from weightledger.api.server.listening import KEEP_ALIVE_S, bound, url_of
from weightledger.ledger.audit.witness import MOST_BYTES, WitnessBook, WitnessReply


def application(book: WitnessBook) -> Starlette:
    """`POST /add-checkpoint` and `GET /ORIGIN-HASH/checkpoint`."""

    async def add_checkpoint(request: Request) -> Response:
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                return _response(WitnessReply(413, f"expected at most {MOST_BYTES} bytes\n"))
        return _response(await run_in_threadpool(book.add_checkpoint, body))

    async def checkpoint(request: Request) -> Response:
        origin_hash = request.path_params["origin_hash"]
        return _response(await run_in_threadpool(book.checkpoint, origin_hash))

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash}/checkpoint", checkpoint, methods=["GET"]),
        ]
    )


def serve_witness(book: WitnessBook, host: str, port: int) -> None:
    """Serve until told to stop."""
    with bound(host, port) as listener:
        url = url_of(listener)
        sys.stdout.write(
            f"witnessing at {url}; logs name it by\n\n  --witness '{url}#{book.verifier}'\n\n"
        )
        sys.stdout.flush()
        app = application(book)
        raise_limit()
        config = uvicorn.Config(
            app, log_level="warning", timeout_keep_alive=KEEP_ALIVE_S, http=limited(room())
        )
        uvicorn.Server(config).run(sockets=[listener])


def _response(answer: WitnessReply) -> Response:
    return Response(
        answer.text, status_code=answer.status, headers={"content-type": answer.media_type}
    )
