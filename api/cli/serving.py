"""`weightledger serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from weightledger.api.cli.options import ApiKey
from weightledger.api.server.logs import configure
from weightledger.api.server.settings import Settings
from weightledger.ledger.errors import InvalidRequest


def serve(
    model: Annotated[
        str | None,
        typer.Option(help="'digits' (built in), a Hugging Face folder, or module:factory."),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="The model's name; by default from --model.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="'embedded' (in this process), 'vllm' or 'aphrodite' (driven by URL)."),
    ] = None,
    engine_url: Annotated[
        str | None, typer.Option(help="Base URL of the server that --engine drives.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    database: Annotated[
        str | None, typer.Option(help="A database URL, instead of SQLite in the data folder.")
    ] = None,
    blob_url: Annotated[
        str | None,
        typer.Option(
            help="Where a new ledger keeps large payloads and snapshots: a folder or"
            " s3://bucket/prefix. It is remembered. Default: the database."
        ),
    ] = None,
    api_key: ApiKey = None,
    on_mismatch: Annotated[
        str | None,
        typer.Option(help="'ledger' loads the ledger's weights over a model's unknown ones."),
    ] = None,
    max_versions: Annotated[int | None, typer.Option(help="Listed versions kept.")] = None,
    checkpoint_interval: Annotated[
        int | None, typer.Option(help="Updates between automatic versions.")
    ] = None,
    auto_rollback_threshold: Annotated[
        float | None, typer.Option(help="Relative degradation that refuses an update; 0: off.")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(help="Adapters loaded at a time.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="Largest rank of an adapter.")] = None,
    max_held_versions: Annotated[
        int | None, typer.Option(help="Past versions that readers may hold before updates wait.")
    ] = None,
) -> None:
    """Serve a model whose every weight change is an event. Flags win over WEIGHTLEDGER_*."""
    from weightledger.api.server.serve import serve as run

    given: dict[str, Any] = {
        "model": model,
        "served_model_name": served_model_name,
        "engine": engine,
        "engine_url": engine_url,
        "data_dir": data_dir,
        "host": host,
        "port": port,
        "database": database,
        "blob_url": blob_url,
        "api_key": api_key,
        "on_mismatch": on_mismatch,
        "max_versions": max_versions,
        "checkpoint_interval": checkpoint_interval,
        "auto_rollback_threshold": auto_rollback_threshold,
        "max_held_versions": max_held_versions,
    }
    try:
        settings = Settings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"setting {name}: {first['msg']}", param=name) from None
    configure()
    run(settings)
