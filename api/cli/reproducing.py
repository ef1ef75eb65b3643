"""`weightledger reproduce`: an old reply again, on the state that it came from."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weightledger.api.cli import output
from weightledger.api.cli.local import opened
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.remote import Remote
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.errors import LedgerError


@configured(*WHERE)
def reproduce(
    settings: Settings,
    route: Annotated[
        str,
        typer.Argument(help="invocations, embeddings, completions or chat/completions."),
    ],
    request: Annotated[
        Path, typer.Option("--request", help="A file with the request's JSON body.")
    ],
    reply: Annotated[
        Path, typer.Option("--reply", help="A file with the JSON body of the old reply.")
    ],
    seq: Annotated[int | None, typer.Option("--seq", help="The reply's X-Weights-Seq.")] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="The reply's X-Weights-Digest.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of torch, as many as the server had."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Answer an old request on the rebuilt state, and compare with the reply of then.

    With --url the server does, beside what it serves. Otherwise this process loads the model that
    the setting 'model' names, as for serve. Exit status 0 when both replies say the
    same bit for bit, 1 when they differ, 2 when they could not be compared.

    Example: weightledger reproduce invocations --request asked.json --reply got.json --seq 12
    """
    try:
        asked, answered = _read(request, "request"), _read(reply, "reply")
        named = {"seq": seq, "digest": digest}
        if settings.url is not None:
            facts = _there(settings, model, _path(route), asked, answered, named, threads)
        else:
            facts = _here(settings, model, _path(route), asked, answered, named, threads)
    except FlagError:
        raise
    except LedgerError as error:
        # Status 1 says that the replies differ.
        raise FlagError(str(error), param=getattr(error, "param", None)) from error
    if as_json:
        output.facts(facts, as_json=True)
    else:
        kept = {key: value for key, value in facts.items() if value not in (None, [])}
        if facts["verdict"] == "same":
            del kept["promised_when"]
        output.facts(kept, as_json=False)
    if facts["verdict"] != "same":
        raise typer.Exit(1)


def _there(
    settings: Settings,
    model: str | None,
    route: str,
    asked: bytes,
    answered: bytes,
    named: dict[str, Any],
    threads: int | None,
) -> dict[str, Any]:
    """What the server says."""
    if threads is not None:
        raise FlagError("the server has its own number of threads", param="threads")
    bodies = {"request": _json(asked, "request"), "reply": _json(answered, "reply")}
    with reading(settings, model) as source:
        assert isinstance(source, Remote)
        return source.reproduce({"route": route, **bodies, **named})


def _here(
    settings: Settings,
    model: str | None,
    route: str,
    asked: bytes,
    answered: bytes,
    named: dict[str, Any],
    threads: int | None,
) -> dict[str, Any]:
    """What the model says in this process."""
    import torch

    from weightledger.api.reproducing import again
    from weightledger.api.server.loading import load

    if settings.engine != "embedded":
        raise FlagError(
            f"the engine {settings.engine} does not answer in this process: only replies of the "
            "embedded engine can be reproduced",
            param="engine",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    with opened(settings, model) as history:
        loaded = load(settings.model, settings.data_dir, settings.served_model_name)
        if loaded.name != history.model:
            raise FlagError(
                f"the setting model names {loaded.name!r}, and the log is of {history.model!r}: "
                "set WEIGHTLEDGER_MODEL as the server has it",
                param="model",
            )
        reproduction = again.reproduce(history, loaded.engine, route, asked, answered, **named)
    return reproduction.to_json()


def _path(route: str) -> str:
    """A route's path, also by its last words."""
    name = route.strip("/").removeprefix("v1/")
    return "/invocations" if name == "invocations" else f"/v1/{name}"


def _json(body: bytes, param: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FlagError(
            f"the {param} must be the JSON body as it came: {error}", param=param
        ) from None


def _read(file: Path, param: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise FlagError(f"cannot read {file}: {error}", param=param) from error
