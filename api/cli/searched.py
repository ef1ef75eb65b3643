"""The log that a bisection searches: the database itself, or a server that --url names.

Behind a server the search is the same: it says which states to judge, and gives them.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from weightledger.api.cli.local import Local
from weightledger.api.cli.remote import Remote
from weightledger.api.cli.source import reading
from weightledger.api.server.settings import Settings
from weightledger.ledger.debug.bisect import reporting, session
from weightledger.ledger.debug.bisect.bisection import Bisection, Judged, Rules
from weightledger.ledger.debug.bisect.downloaded import Downloaded
from weightledger.ledger.debug.bisect.panels import Place
from weightledger.ledger.debug.bisect.search import Verdict
from weightledger.ledger.debug.drawn import search_picture
from weightledger.ledger.errors import JudgeFailed
from weightledger.ledger.history.reader import History

Item = dict[str, Any]
Told = Callable[[Bisection, Judged], None]


class LocalSearch(session.Here):
    """Searches a log of this process."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.model = history.model

    def start(self, good: str | None, bad: str | None, rules: Rules) -> Bisection:
        """A bisection; either end may be told later."""
        return session.start(self._history, good, bad, rules)

    def tell(self, going: Bisection, verdict: Verdict, position: str | None) -> Bisection:
        """The same with a verdict."""
        return session.tell(self._history, going, (verdict, position))

    def report(self, going: Bisection) -> Item:
        """Where it has come to."""
        return reporting.report(self._history, going)

    def picture(self, going: Bisection) -> str:
        """Where it has come to, as SVG."""
        return search_picture(reporting.chances(self._history, going))


class RemoteSearch:
    """Searches the log of a server."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote = remote
        self._folder = folder
        self.model = remote.model()
        self.read_bytes = 0

    def start(self, good: str | None, bad: str | None, rules: Rules) -> Bisection:
        """A bisection; either end may be told later."""
        asked: Item = {"good": good, "bad": bad, **_rules(rules)}
        return _bisection(self._remote.bisect(asked))

    def tell(self, going: Bisection, verdict: Verdict, position: str | None) -> Bisection:
        """The same with a verdict."""
        said = [{"verdict": verdict, "position": position}]
        return _bisection(self._remote.bisect({"search": going.to_json(), "verdicts": said}))

    def report(self, going: Bisection) -> Item:
        """Where it has come to."""
        reply = self._remote.bisect({"search": going.to_json()})
        return {key: value for key, value in reply.items() if key not in ("object", "search")}

    def picture(self, going: Bisection) -> str:
        """Where it has come to, as SVG."""
        return self._remote.bisect_picture({"search": going.to_json()})

    def probes(self, bisection: Bisection, most: int) -> list[int]:
        """The seqs of the states to judge next; the files of those before go."""
        for old in self._folder.iterdir():
            old.unlink()
        asked = {"search": bisection.to_json(), "probes": most}
        return list(self._remote.bisect(asked)["probes"])

    def state(self, seq: int) -> Downloaded:
        """A state in a file, which is there until it is asked what to judge next."""
        file = self._folder / f"seq-{seq}.safetensors"
        facts = self._remote.save({"to": f"seq:{seq}"}, file)
        self.read_bytes += file.stat().st_size
        return Downloaded(seq, facts["version"] or None, file)

    def place(self, seq: int) -> Place:
        """The file, for other processes of this machine."""
        state = self.state(seq)
        return {"seq": seq, "version": state.version, "file": str(state.file)}

    def judged_there(self, going: Bisection, most: int, told: Told) -> Bisection:
        """Have the server's own evaluator judge, a state at a time, until the search is over."""
        for _ in range(most):
            reply = self._remote.bisect({"search": going.to_json(), "judge": 1})
            after = _bisection(reply)
            for number in range(len(going.judged), len(after.judged)):
                told(replace(after, judged=after.judged[: number + 1]), after.judged[number])
            if len(after.judged) == len(going.judged):
                return after
            going = after
        return going


Search = LocalSearch | RemoteSearch


@contextlib.contextmanager
def searching(settings: Settings, model: str | None) -> Iterator[Search]:
    """What to search: the server that --url names, else the database itself."""
    with reading(settings, model) as source:
        if isinstance(source, Local):
            yield LocalSearch(source.history)
            return
        with tempfile.TemporaryDirectory(prefix="weightledger-bisect-") as folder:
            yield RemoteSearch(source, Path(folder))


def _rules(rules: Rules) -> Item:
    """Rules as the route takes them."""
    return {
        "noisy": rules.rate if rules.noisy else None,
        "learn_rate": rules.noisy and rules.rate is None,
        **{key: value for key, value in asdict(rules).items() if key not in ("noisy", "rate")},
    }


def _bisection(reply: Item) -> Bisection:
    try:
        return Bisection.from_json(dict(reply["search"]))
    except (KeyError, TypeError, ValueError) as error:
        raise JudgeFailed(
            f"the server answers with no search that is known here ({error!r}): it is of another "
            "release"
        ) from None
