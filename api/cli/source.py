"""Where commands read from and write to.

There is one way to find a server: the one that --url names, else the one that announces itself at
the database.
"""

import contextlib
import getpass
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from weightledger.api.cli.local import Local, opened, require_ledger
from weightledger.api.server.settings import Settings
from weightledger.ledger.access.keys import check_not_reserved
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.sql.presence import Announced, servers

if TYPE_CHECKING:
    from weightledger import Caller
    from weightledger.api.cli.offline import Offline
    from weightledger.api.cli.remote import Remote


@contextlib.contextmanager
def reading(settings: Settings, model: str | None) -> "Iterator[Local | Remote]":
    """The server that --url names, else the database itself."""
    if settings.url is not None:
        remote = _remote(settings.url, settings)
        _require_served(remote, model)
        yield remote
        return
    with opened(settings, model) as history:
        yield Local(history, settings.update_config().url)


def writing(
    settings: Settings,
    model: str | None,
    *,
    reason: str | None = None,
    actor: str | None = None,
    offline: bool | None = None,
) -> "Remote | None":
    """The server to write to; None to write to the database itself, which --offline asks for.

    `offline` None is for what only a server can do.
    Raises NotFound when no server is found and none of this was asked for, InvalidRequest when
    --offline would write beside a server.
    """
    url = settings.url or _found(settings, model)
    if offline:
        if url is not None:
            raise InvalidRequest(
                f"{url} serves this ledger: leave out --offline, or stop that server first"
            )
        return None
    if url is None:
        require_ledger(settings)
        ways = "start one (weightledger serve) or name one with --url"
        if offline is not None:
            ways += ", or write to the database itself with --offline"
        raise NotFound(f"no server serves this ledger: {ways}")
    # Who holds a key is called by the key's name, so nobody says who they are by default.
    named = actor or (None if settings.api_key else whoami())
    headers = {"x-actor": named, "x-reason": reason}
    sent = {name: quote(text, safe=" ") for name, text in headers.items() if text}
    remote = _remote(url, settings, sent)
    _require_served(remote, model)
    return remote


@contextlib.contextmanager
def writer(
    settings: Settings,
    model: str | None,
    *,
    reason: str | None = None,
    actor: str | None = None,
    offline: bool,
) -> "Iterator[Remote | Offline]":
    """What `writing` gives, or with --offline the database itself, which answers as a server."""
    server = writing(settings, model, reason=reason, actor=actor, offline=offline)
    if server is not None:
        yield server
        return
    from weightledger.api.cli.offline import offline as opened  # imports torch

    with opened(settings, model, offline_caller(reason, actor)) as log:
        yield log


def offline_caller(reason: str | None, actor: str | None) -> "Caller":
    """Who writes to the database itself: by default the user of this process."""
    from weightledger.ledger.writing.caller import Caller

    if actor is not None:
        check_not_reserved(actor, "actor")
    return Caller(actor=actor or whoami(), reason=reason)


def whoami() -> str:
    """The user of this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown user"


def _found(settings: Settings, model: str | None) -> str | None:
    """The server that announces itself at the database and serves the model, if there is one."""
    config = settings.update_config()
    if config.database_url is None and not config.file.exists():
        return None
    announced = servers(config.url)
    if len(announced) <= 1:
        return _reachable(announced[0]) if announced else None
    by_model: dict[str, Announced] = {}
    for one in announced:
        by_model.setdefault(_remote(_reachable(one), settings).model(), one)
    if model is None and len(by_model) == 1:
        (model,) = by_model
    if model is None or model not in by_model:
        serving = ", ".join(f"{name} ({one.url})" for name, one in by_model.items())
        raise InvalidRequest(
            f"say which model with --model, or which server with --url: {serving}", param="model"
        )
    return by_model[model].url


def _remote(url: str, settings: Settings, caller: Mapping[str, str] | None = None) -> "Remote":
    from weightledger.api.cli.remote import Remote  # imports an HTTP client

    return Remote(url, settings.api_key, caller)


def _reachable(server: Announced) -> str:
    """Its URL; InvalidRequest when only another machine can use it."""
    if not server.url:
        raise InvalidRequest(
            f"this ledger is served on {server.host}, at an address too long to be found this way:"
            " name it with --url"
        )
    from weightledger.ledger.http import is_loopback  # imports an HTTP client

    if server.host != socket.gethostname() and is_loopback(urlsplit(server.url).hostname or ""):
        raise InvalidRequest(
            f"this ledger is served on {server.host} at {server.url}, which only that machine can "
            "reach: run the command there, or name a way with --url"
        )
    return server.url


def _require_served(remote: "Remote", model: str | None) -> None:
    if model is not None and (served := remote.model()) != model:
        raise InvalidRequest(f"{remote.url} serves {served!r}, not {model!r}", param="model")
