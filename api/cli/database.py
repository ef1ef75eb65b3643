"""`weightledger db`: the tables, and the role that a server needs."""

from typing import Annotated

import typer

from weightledger.api.cli.help import App
from weightledger.api.cli.options import configured
from weightledger.api.server.settings import Settings
from weightledger.ledger.sql.roles import grants
from weightledger.ledger.store.sql_store import SqlStore

app = App(help="The database's tables and roles.", no_args_is_help=True)


@app.command()
@configured("data_dir", "database")
def upgrade(settings: Settings) -> None:
    """Make the tables, or bring them to this release; as their owner.

    Example: weightledger db upgrade --database postgresql://owner@host/ledger
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    SqlStore.open(settings.update_config().url).close()


@app.command()
def role(
    name: Annotated[str, typer.Argument(help="An existing PostgreSQL role.")],
    follower: Annotated[
        bool, typer.Option("--follower", help="For `weightledger follow`: it appends nothing.")
    ] = False,
) -> None:
    """Print the SQL that lets a role append and read, and change nothing that is recorded.

    Example: weightledger db role ledger_server | psql ledger
    """
    typer.echo("\n".join(f"{statement};" for statement in grants(name, follower=follower)))
