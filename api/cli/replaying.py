"""`weightledger replay`: states again, as they were or without some events, as files."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weightledger.api.cli import output
from weightledger.api.cli.files import replacing
from weightledger.api.cli.local import Local
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.parallel import SHARED, for_states, sharing
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import FlagError
from weightledger.ledger.errors import StorageError
from weightledger.ledger.parallel import Executor

Without = Annotated[
    list[str] | None,
    typer.Option(help="An event to leave out, actor:NAME or rule:ID; repeatable."),
]
Mode = Annotated[
    Literal["mechanical", "causal"],
    typer.Option(
        help="mechanical: their bit differences are taken out. causal: what came later is worked "
        "out again."
    ),
]
OnlyAfter = Annotated[
    str | None, typer.Option(metavar="POSITION", help="Events up to this position stay.")
]


@configured(*WHERE, *SHARED)
def replay(
    settings: Settings,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POSITION",
            help="v1, update_3, 12, head~1, a time …; repeatable, then --out is a folder.",
            show_default="head",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The safetensors file to write.")
    ] = None,
    hugging_face: Annotated[
        Path | None,
        typer.Option(help="The served folder: then --out is one too, for from_pretrained."),
    ] = None,
    without: Without = None,
    mode: Mode = "mechanical",
    only_after: OnlyAfter = None,
    each: Annotated[
        bool,
        typer.Option("--each", help="Each --without left out by itself: a line for each of them."),
    ] = False,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Rebuild a state from the log and write it to a file.

    Every digest on the way is verified. The file is safetensors; its metadata say which state it
    is. With --without it is what the state would be had some events not happened; without --out
    only what that changes is told.

    Example: weightledger replay --to v1 -o v1.safetensors
    """
    positions = to or ["head"]
    if out is None and not without:
        raise FlagError("say where the state goes: -o FILE", param="out")
    if each and (out is not None or not without):
        raise FlagError("--each compares several --without; write one of them by -o", param="each")
    if len(positions) > 1 and (without or hugging_face):
        raise FlagError("several positions are written as safetensors, as they were", param="to")
    what = {"without": list(without or ()), "mode": mode, "only_after": only_after}
    with sharing(settings, for_states) as executor, reading(settings, model) as source:
        if each:
            asked = {"to": positions[0], **what}
            if isinstance(source, Local):
                found = source.what_if_each(asked, executor)
            else:
                found = source.what_if_each(asked)
            lines = found if as_json else [_line(one) for one in found]
            output.listing(
                lines, _OF_EACH, id_key="without", as_json=as_json, as_csv=False, quiet=False
            )
            return
        if out is None:
            asked = {"to": positions[0], **what}
            if isinstance(source, Local):
                told = [source.what_if(asked, executor)]
            else:  # a server shares nothing out
                told = [source.what_if(asked)]
        elif hugging_face is not None:
            told = [_folder(source, {"to": positions[0], **what}, hugging_face, out)]
        else:
            told = _saved(source, positions, out, what, executor)
    if len(told) > 1 and as_json:
        output.listing(told, ("file",), id_key="file", as_json=True, as_csv=False, quiet=False)
        return
    for facts in told:
        output.facts(facts if as_json else _shown(facts), as_json=as_json)


def _saved(
    source: Any, positions: Sequence[str], out: Path, asked: Mapping[str, Any], executor: Executor
) -> list[dict[str, Any]]:
    """States in their files, each whole or not at all; one of several is named by its seq.

    A server shares nothing out: its part of the work is its own.
    """
    ours = isinstance(source, Local)
    if len(positions) == 1:
        (position,) = positions
        one = {"to": position, **asked}
        with replacing(out) as partial:
            facts = source.save(one, partial, executor) if ours else source.save(one, partial)
        return [{**facts, **_written(position, out)}]
    _make(out)
    files = {one: out / f"seq-{source.event(one)['node']}.safetensors" for one in positions}
    if not ours or executor.jobs == 1:
        told = []
        for position, file in files.items():
            with replacing(file) as partial:
                facts = source.save({"to": position, **asked}, partial)
            told.append({**facts, **_written(position, file)})
        return told
    with contextlib.ExitStack() as stack:
        partials = {one: stack.enter_context(replacing(file)) for one, file in files.items()}
        saved = source.save_each(partials, executor)
    return [{**saved[one], **_written(one, file)} for one, file in files.items()]


def _written(position: str, file: Path) -> dict[str, Any]:
    size = file.stat().st_size if file.is_file() else None  # a pipe has none
    return {"position": position, "bytes": size, "file": str(file)}


def _folder(source: Any, asked: Mapping[str, Any], served: Path, out: Path) -> dict[str, Any]:
    from weightledger.api.server.loading import export_folder  # imports torch

    if out.exists():
        raise FlagError(f"--out {out} exists already", param="out")
    with _replacing_folder(out) as partial, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        facts = source.save(asked, file)
        export_folder(file, served, partial)
    return {**facts, "file": str(out)}


@contextlib.contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the name `out` when all went well."""
    partial = out.with_name(out.name + ".part")
    try:
        yield partial
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error}") from error


_OF_CHANGE = ("name", "changed", "largest_change", "relative_norm")


_OF_EACH = ("without", "digest", "derived", "tensors", "changed", "moved_most", "by", "reason")


def _line(what_if: Mapping[str, Any]) -> dict[str, Any]:
    """For people: how far one what-if is from what is, and which tensor moved farthest."""
    line = {**dict.fromkeys(_OF_EACH), "without": ", ".join(what_if["without"])}
    if "reason" in what_if:
        return {**line, "reason": what_if["reason"]}
    changed = what_if["changed"]
    most = changed[0] if changed else {"name": None, "relative_norm": None}
    return {
        **line,
        "digest": what_if["digest"][:12],
        "derived": what_if["derived"],
        "tensors": len(changed),
        "changed": sum(one["changed"] for one in changed),
        "moved_most": most["name"],
        "by": None if most["relative_norm"] is None else f"{most['relative_norm']:.3g}",
    }


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    """For people: of what changed the numbers that tell most."""
    shown = {key: value for key, value in facts.items() if value not in (None, "", [])}
    if "changed" in shown:
        shown["changed"] = [{key: one[key] for key in _OF_CHANGE} for one in shown["changed"]]
    return shown
