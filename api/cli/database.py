"""`weightledger db`: the tables, and the role that a server needs."""

from typing import Annotated

import typer

from weightledger import Ledger
from weightledger.api.cli.options import DEFAULT_DATA_DIR, Database, DataDir
from weightledger.ledger.config import DynamicUpdateConfig
from weightledger.ledger.sql.roles import grants

app = typer.Typer(help="The database's tables and roles.", no_args_is_help=True)


@app.command()
def upgrade(data_dir: DataDir = DEFAULT_DATA_DIR, database: Database = None) -> None:
    """Make the tables, or bring them to this release; as their owner."""
    data_dir.mkdir(parents=True, exist_ok=True)
    Ledger.open(DynamicUpdateConfig(backup_dir=data_dir, database_url=database).url).close()


@app.command()
def role(name: Annotated[str, typer.Argument(help="An existing PostgreSQL role.")]) -> None:
    """Print the SQL that lets a role append and read, and change nothing that is recorded."""
    typer.echo("\n".join(f"{statement};" for statement in grants(name)))
