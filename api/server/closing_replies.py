"""Replies to connections that are then closed, written without a request of the framework's."""

from http import HTTPStatus

from weightledger.api.rest.errors import error_response


def closing(status: int, message: str, *headers: str) -> bytes:
    """An error as every route gives it, as bytes to write, with these further lines of its head."""
    reply = error_response(status, message)
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    given = [f"{name.decode()}: {value.decode()}" for name, value in reply.raw_headers]
    head = "\r\n".join((first, "connection: close", *headers, *given))
    return head.encode() + b"\r\n\r\n" + bytes(reply.body)
