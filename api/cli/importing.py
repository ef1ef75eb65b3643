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
        differing, unwrapped = _differing(tensors, server.parameters())
        result = server.replace(differing, metadata | unwrapped)
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
) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Those that the server has other bits of, and what a wrapper had put into their names.

    Refuses what recording beside no server does. A server does not tell the further names of tied
    tensors, so of a name that it does not have the values decide: those of one of its parameters.
    """
    from weightledger.ledger.tensors.digest import content_digest
    from weightledger.ledger.tensors.lanes import lanes
    from weightledger.ledger.tensors.spec import TensorSpec
    from weightledger.ledger.writing.recording import tensors_of

    specs = {
        one["name"]: TensorSpec(one["name"], one["dtype"], tuple(one["shape"]))
        for one in parameters
    }

    def content(tensor: "Tensor") -> tuple[str, tuple[int, ...], str]:
        digest = content_digest(lanes(tensor.contiguous())).hex()
        return str(tensor.dtype), tuple(tensor.shape), digest

    first_names: dict[str, str] = {}
    if extra := sorted(tensors.keys() - specs.keys()):
        ours = {content(tensors[name]): name for name in specs if name in tensors}
        contents = {name: content(tensors[name]) for name in extra}
        first_names = {name: ours[one] for name, one in contents.items() if one in ours}
    read, unwrapped = tensors_of(tensors, specs, first_names)
    there = {one["name"]: one["digest"] for one in parameters}
    differing = {
        name: tensor.contiguous()
        for name, tensor in read.items()
        if content(tensor)[2] != there[name]
    }
    return differing, {"unwrapped": list(unwrapped)} if unwrapped else {}
