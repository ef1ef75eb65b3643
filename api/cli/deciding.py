"""Commands that decide about one thing on a server, by its id: approve, reject, promote, abort."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from weightledger.api.cli import output
from weightledger.api.cli.help import App
from weightledger.api.cli.options import WHERE, Actor, Json, Model, Reason, configured
from weightledger.api.cli.source import writing
from weightledger.api.server.settings import Settings

if TYPE_CHECKING:
    from weightledger.api.cli.connection import Item
    from weightledger.api.cli.remote import Remote

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, as `list` has it.")]


def add_decision(app: App, name: str, words: str, decide: "Callable[[Remote, str], Item]") -> None:
    """Give `app` a command that has `decide` tell the server, and prints what came of it.

    `words` are its help: what it does, and an example.
    """

    def run(
        settings: Settings,
        asked: Id,
        reason: Reason = None,
        actor: Actor = None,
        model: Model = None,
        as_json: Json = False,
    ) -> None:
        server = writing(settings, model, reason=reason, actor=actor)
        assert server is not None, "without --offline there is a server, or an error"
        output.facts(decide(server, asked), as_json=as_json)

    run.__doc__ = words
    app.command(name)(configured(*WHERE)(run))
