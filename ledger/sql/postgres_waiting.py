"""Sending to PostgreSQL and reading what it answers by libpq's own calls, waiting without Python's
lock, which `get_result` would hold."""

import select

import psycopg
from psycopg import errors, pq


def flush(pgconn: pq.abc.PGconn) -> None:
    """Send all that is to go out. What comes meanwhile is read, so neither side waits for the other
    to read."""
    while pgconn.flush():
        _wait(pgconn, select.POLLIN | select.POLLOUT)
        pgconn.consume_input()


def result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
    """The next answer; None behind the last one to a statement."""
    while pgconn.is_busy():
        _wait(pgconn, select.POLLIN)
        pgconn.consume_input()
    return pgconn.get_result()


def only_answer(pgconn: pq.abc.PGconn) -> pq.abc.PGresult:
    """What the statement that is under way gives, outside of pipeline mode; then none is."""
    given = None
    while (answer := result(pgconn)) is not None:
        given = answer
    if given is None:
        pgconn.finish()  # nothing that comes would be understood
        raise psycopg.OperationalError("the server answered nothing")
    return given


def failure(pgconn: pq.abc.PGconn, answer: pq.abc.PGresult) -> psycopg.Error:
    """The driver's error for an answer that is one."""
    if pgconn.status == pq.ConnStatus.BAD:
        return psycopg.OperationalError(answer.get_error_message())
    return errors.error_from_result(answer)


def _wait(pgconn: pq.abc.PGconn, events: int) -> None:
    poll = select.poll()
    poll.register(pgconn.socket, events)
    poll.poll()
