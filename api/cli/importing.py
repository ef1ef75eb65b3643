"""`weightledger import`: a checkpoint made elsewhere becomes one event; a log stays what it was."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightledger import Ledger
from weightledger.api.cli import output
from weightledger.api.cli.options import WHERE, Actor, Json, Model, Offline, Reason, configured
from weightledger.api.cli.source import offline_caller, writing
from weightledger.api.server.settings import Settings
from weightledger.ledger import permissions
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.secrets import mask
from weightledger.ledger.transfer import import_log, is_log

if TYPE_CHECKING:
    from torch import Tensor


@configured(*WHERE)
def import_(
    settings: Settings,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE", help="A safetensors file, a folder of them, or a log."
        ),
    ],
    reason: Reason = None,
    actor: Actor = None,
    offline: Offline = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Record the weights of a checkpoint as one event.

    The file, or the files of a Hugging Face folder together, have every parameter of the model,
    with its dtype and shape; what differs from the head is recorded, bit for bit.

    A log that `weightledger export --payloads` wrote is written event by event into a ledger that
    does not have its model, of either kind of database: the same seqs, hashes and weights.

    Example: weightledger import ./finetuned -m 'nightly fine-tuning'
    """
    if is_log(source):
        output.facts(_whole_log(settings, source), as_json=as_json)
        return
    tensors = _read(source)
    metadata = {"imported_from": source.name}
    server = writing(settings, model, reason=reason, actor=actor, offline=offline)
    if server is not None:
        result = server.replace(_differing(tensors, server.parameters()), metadata)
    else:
        from weightledger.api.cli.offline import offline as opened

        with opened(settings, model, offline_caller(reason, actor)) as log:
            result = log.record(tensors, metadata)
    output.facts(result, as_json=as_json)
    if not result["success"]:
        raise typer.Exit(1)


def _whole_log(settings: Settings, source: Path) -> dict[str, Any]:
    """Write an exported log into the database itself, which is made when there is none."""
    config = settings.update_config()
    if config.database_url is None:
        permissions.make_folder(config.file.parent)
    with Ledger.open(config.url) as ledger:
        imported = import_log(ledger.store, source)
    return {
        "model": imported.model,
        "events": imported.events,
        "written": imported.written,
        "database": mask(config.url),
    }


def _read(source: Path) -> "dict[str, Tensor]":
    """Every tensor of a safetensors file or of those in a folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from weightledger.ledger.json_text import RepeatedName, require_header_names_once

    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
    if not files or not all(file.is_file() for file in files):
        raise NotFound(f"there is no safetensors file at {source}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            require_header_names_once(file)
            read = load_file(file)
        except (SafetensorError, OSError, RepeatedName) as error:
            raise InvalidRequest(f"{file} cannot be read as safetensors: {error}") from error
        twice = tensors.keys() & read.keys()
        if twice:
            raise InvalidRequest(f"two files of {source} have the tensor {min(twice)!r}")
        tensors |= read
    return tensors


def _differing(
    tensors: "dict[str, Tensor]", parameters: list[dict[str, Any]]
) -> "dict[str, Tensor]":
    """Those that the server has other bits of; InvalidRequest unless all of its are there."""
    from weightledger.ledger.tensors.digest import content_digest
    from weightledger.ledger.tensors.lanes import lanes

    differing: dict[str, Tensor] = {}
    for one in parameters:
        name = one["name"]
        if name not in tensors:
            raise InvalidRequest(f"the checkpoint has no tensor {name!r}, which the model has")
        tensor = tensors[name].contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (dtype, list(tensor.shape)) != (one["dtype"], one["shape"]):
            raise InvalidRequest(
                f"tensor {name!r} is {dtype} {list(tensor.shape)} in the checkpoint and"
                f" {one['dtype']} {one['shape']} in the model"
            )
        if content_digest(lanes(tensor)).hex() != one["digest"]:
            differing[name] = tensor
    return differing
