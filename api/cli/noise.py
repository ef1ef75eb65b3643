"""How verdicts are taken, as options: judges that err, and how certain a search has to be."""

import re
from dataclasses import replace
from typing import Annotated, Any

import typer

from weightledger.api.cli.help import PanelledCommand
from weightledger.api.server.sources import FlagError
from weightledger.ledger.debug.bisect import bisection
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.errors import InvalidRequest

Noisy = Annotated[
    str | None,
    typer.Option(
        metavar="[RATE]",
        help="The judge errs: so often (0.1 is one time in ten), or as often as it turns out.",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        help="Of a noisy search: how certain it has to be to end.",
        show_default=str(bisection.CONFIDENCE),
    ),
]

_LEARNT = "learnt"


class RateMayBeMissing(PanelledCommand):
    """`--noisy` stands alone or before a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        own = words[: words.index("--")] if "--" in words else words
        for at, word in enumerate(own):
            after = own[at + 1] if at + 1 < len(own) else ""
            if word == "--noisy" and not re.fullmatch(r"-?[\d.][\w.+-]*", after):
                words[at] = f"--noisy={_LEARNT}"
        return super().parse_args(ctx, words)


def with_noise(rules: Rules, noisy: str | None, confidence: float | None) -> Rules:
    """The rules with what these options say; FlagError for a rate that is none."""
    if confidence is not None:
        rules = replace(rules, confidence=confidence)
    if noisy is None:
        return rules
    if noisy == _LEARNT:
        return replace(rules, noisy=True, rate=None)
    try:
        return replace(rules, noisy=True, rate=float(noisy))
    except ValueError as error:
        if isinstance(error, InvalidRequest):
            raise
        raise FlagError(f"--noisy takes a rate such as 0.1, got {noisy!r}", param="noisy") from None
