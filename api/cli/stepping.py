"""The view of `step`: the log on the left, what the chosen event did on the right."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import DataTable, Footer, Static

from weightledger.api.cli.local import Local
from weightledger.api.cli.remote import Remote
from weightledger.api.loglines import STYLES, short, summary, when
from weightledger.api.plain_text import plain
from weightledger.ledger.errors import LedgerError
from weightledger.ledger.events import STATE_CHANGING

Item = Mapping[str, Any]

_PAGE = 100
_MOST_TENSORS = 40


class Stepper(App[None]):
    """Events newest first; older ones are read as one comes to them."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #events { width: 1fr; }
    #change { width: 1fr; padding: 0 1; border-left: solid $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c,escape", "quit", "End", priority=True),
        Binding("j", "older", "Older"),
        Binding("k", "newer", "Newer"),
    ]

    def __init__(self, source: Local | Remote, start: int) -> None:
        super().__init__()
        self._source = source
        self._items: list[Item] = []
        self._start = start
        self._diffs: dict[int, str | Item] = {}

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield DataTable(id="events", cursor_type="row")
            with VerticalScroll(id="change"):
                yield Static(id="told")
        yield Footer()

    def on_mount(self) -> None:
        """The first page, with the cursor at the event asked for."""
        table = self._table()
        table.add_columns("seq", "at (UTC)", "event")
        newer = self._source.events({"min_seq": self._start}, _PAGE)
        self._add(newer if newer and newer[-1]["seq"] == self._start else [])
        self._more()
        at = next((n for n, one in enumerate(self._items) if one["seq"] == self._start), 0)
        table.move_cursor(row=at)
        table.focus()

    def action_older(self) -> None:
        """One event down."""
        self._table().action_cursor_down()

    def action_newer(self) -> None:
        """One event up."""
        self._table().action_cursor_up()

    def on_data_table_row_highlighted(self, moved: DataTable.RowHighlighted) -> None:
        """Show the event that the cursor has come to."""
        if not 0 <= moved.cursor_row < len(self._items):
            return
        item = self._items[moved.cursor_row]
        self._show(item)
        if moved.cursor_row >= len(self._items) - 2:
            self._more()
        if item["kind"] in STATE_CHANGING and item["seq"] and item["seq"] not in self._diffs:
            self._compare(item)

    @work(thread=True, exclusive=True)
    def _compare(self, item: Item) -> None:
        """What the event did to the state, on a thread: it may read much."""
        before = item["facts"].get("from_seq", item["seq"] - 1)
        found: str | Item
        try:
            found = self._source.diff(
                {"from": f"seq:{before}", "to": f"seq:{item['seq']}", "ranks": "auto"}
            )
        except LedgerError as error:
            found = str(error)
        self.call_from_thread(self._compared, item, found)

    def _compared(self, item: Item, found: str | Item) -> None:
        self._diffs[item["seq"]] = found
        table = self._table()
        if self._items and self._items[table.cursor_row]["seq"] == item["seq"]:
            self._show(item)

    def _more(self) -> None:
        """Read a page of older events."""
        oldest = self._items[-1]["seq"] if self._items else self._start + 1
        if oldest > 0:
            self._add(self._source.events({"max_seq": oldest - 1}, _PAGE))

    def _add(self, items: Sequence[Item]) -> None:
        table = self._table()
        for item in items:
            self._items.append(item)
            words = plain(f"{short(item['id'])} {summary(item)}")
            style = STYLES.get(item["kind"], "")
            table.add_row(str(item["seq"]), when(item["recorded_at"]), Text(words, style=style))

    def _show(self, item: Item) -> None:
        told = self.query_one("#told", Static)
        told.update(Group(*_told(item, self._diffs.get(item["seq"]))))

    def _table(self) -> DataTable[Any]:
        return self.query_one("#events", DataTable)


def _told(item: Item, found: str | Item | None) -> Iterator[Text | Table]:
    """Who, when, why, the scores, and the diff as far as it is known."""
    yield Text(plain(f"{item['id']}  (seq {item['seq']})"), style="bold")
    yield Text(f"{plain(summary(item))}\n")
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name in ("recorded_at", "actor", "reason"):
        if item[name]:
            facts.add_row(name, Text(plain(str(item[name]))))
    yield facts
    scores = _scores(item["facts"])
    if scores is not None:
        yield scores
    if item["seq"] == 0:
        yield Text("\nthere is no state before it", style="dim")
    elif item["kind"] not in STATE_CHANGING:
        yield Text("\nthe state stayed as it was", style="dim")
    elif found is None:
        yield Text("\ncomparing …", style="dim")
    elif isinstance(found, str):
        yield Text(f"\nno diff: {plain(found)}", style="red")
    else:
        yield Text(f"\n{found['tensors_changed']} of {found['tensors']} tensors differ", "bold")
        yield _diff(found)


def _scores(facts: Item) -> Table | None:
    """The evaluator's metrics before and after, where there are some."""
    before, after = facts.get("pre_metrics") or {}, facts.get("post_metrics") or {}
    names = [name for name in {**before, **after} if name != "timestamp"]
    if not names:
        return None
    table = Table("score", "before", "after", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_row(plain(name), *(_number(side.get(name)) for side in (before, after)))
    return table


def _diff(found: Item) -> Table:
    heads = ("tensor", "changed", "max |Δ|", "‖Δ‖ ÷ ‖w‖", "cosine")
    table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for one in found["by_tensor"][:_MOST_TENSORS]:
        table.add_row(
            Text(plain(one["name"])),
            f"{one['changed']:,}",
            *(_number(one[name]) for name in ("largest_change", "relative_norm", "cosine")),
        )
    return table


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
