"""`weightledger bisect start | good | bad | skip | run | log | visualize | reset`."""

from pathlib import Path
from typing import Annotated

import typer

from weightledger.api.cli import bisect_output, output, search_file
from weightledger.api.cli.files import replacing
from weightledger.api.cli.help import App
from weightledger.api.cli.judging import run
from weightledger.api.cli.noise import Confidence, Noisy, RateMayBeMissing, with_noise
from weightledger.api.cli.options import WHERE, Json, Model, configured
from weightledger.api.cli.parallel import SHARED
from weightledger.api.cli.search_file import State, file_of, held
from weightledger.api.cli.searched import searching
from weightledger.api.server.settings import Settings
from weightledger.ledger.debug.bisect import bisection, reporting
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.errors import InvalidRequest

app = App(
    help="Find the event that made a model bad, by judging states between a good and a bad one.",
    no_args_is_help=True,
)

Svg = Annotated[
    Path | None, typer.Option("--svg", metavar="FILE", help="Write a picture to this file too.")
]
Where = Annotated[
    str | None, typer.Argument(metavar="POSITION", help="By default the state to be judged next.")
]


@app.command(cls=RateMayBeMissing)
@configured(*WHERE)
def start(
    settings: Settings,
    good: Annotated[
        str | None, typer.Option(metavar="POSITION", help="A state that is good.")
    ] = None,
    bad: Annotated[
        str | None, typer.Option(metavar="POSITION", help="A state that is bad.")
    ] = None,
    noisy: Noisy = None,
    confidence: Confidence = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Begin a search.

    What is searched is the way from the good state to the bad one, across rollbacks where there are
    some between them.

    Example: weightledger bisect start --good v1 --bad head
    """
    rules = with_noise(Rules(), noisy, confidence)
    with (
        searching(settings, model) as search,
        held(file_of(settings, search.model, state)) as file,
    ):
        if file.exists():
            raise InvalidRequest(
                f"a bisection is going on in {file}; end it with: weightledger bisect reset"
            )
        begun = search.start(good, bad, rules)
        bisection.save(file, begun)
        bisect_output.show(search.report(begun), as_json)


@app.command()
@configured(*WHERE)
def good(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state is good.

    Example: weightledger bisect good v1
    """
    _tell(settings, "good", position, state, model, as_json)


@app.command()
@configured(*WHERE)
def bad(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state is bad.

    Example: weightledger bisect bad head
    """
    _tell(settings, "bad", position, state, model, as_json)


@app.command()
@configured(*WHERE)
def skip(
    settings: Settings,
    position: Where = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Say that a state cannot be judged.

    Example: weightledger bisect skip seq:12
    """
    _tell(settings, "skip", position, state, model, as_json)


app.command(cls=RateMayBeMissing)(configured(*WHERE, *SHARED)(run))


@app.command()
@configured(*WHERE)
def log(
    settings: Settings, state: State = None, model: Model = None, as_json: Json = False
) -> None:
    """What was said so far, as the commands that say it again.

    Example: weightledger bisect log
    """
    with searching(settings, model) as search:
        going = bisection.load(file_of(settings, search.model, state))
    if as_json:
        output.facts(going.to_json(), as_json=True)
        return
    for line in reporting.commands(going):
        typer.echo(line)


@app.command()
@configured(*WHERE)
def visualize(
    settings: Settings,
    svg: Svg = None,
    state: State = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Where the search stands: the steps that may be to blame, likeliest first.

    Example: weightledger bisect visualize --svg search.svg
    """
    with searching(settings, model) as search:
        going = bisection.load(file_of(settings, search.model, state))
        facts = search.report(going)
        picture = None if svg is None else search.picture(going)
    if svg is not None and picture is not None:
        with replacing(svg) as partial:
            partial.write_text(picture)
    if as_json:
        output.facts(facts, as_json=True)
        return
    bisect_output.suspects(facts["suspected"])


@app.command()
@configured(*WHERE)
def reset(
    settings: Settings, state: State = None, model: Model = None, as_json: Json = False
) -> None:
    """End the search, and forget what was said.

    Example: weightledger bisect reset
    """
    with searching(settings, model) as search:
        file = file_of(settings, search.model, state)
    output.facts({"ended": search_file.remove(file)}, as_json=as_json)


def _tell(
    settings: Settings,
    verdict: Verdict,
    position: str | None,
    state: Path | None,
    model: str | None,
    as_json: bool,
) -> None:
    with (
        searching(settings, model) as search,
        held(file_of(settings, search.model, state)) as file,
    ):
        told = search.tell(bisection.load(file), verdict, position)
        bisection.save(file, told)
        bisect_output.show(search.report(told), as_json)
