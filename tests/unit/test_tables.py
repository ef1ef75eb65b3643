"""Tables on terminals of any width: what stands in them is whole, or goes on below."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightledger.api.cli import output

ITEMS = [
    {
        "seq": number,
        "id": f"update_{number}_1796038041",
        "what": "additive layers.3.mlp.weight lr 0.01 10 changed",
        "|Δ|": f"{0.000316227 * number:.6g}",
        "live": "yes",
        "actor": "somebody with-a-name-that-goes-on-and-on",
    }
    for number in (9, 10, 2_147_483_647)
]
COLUMNS = tuple(ITEMS[0])
WHOLE = {"seq", "id", "|Δ|"}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(items: list[dict[str, object]], columns: int | None) -> str:
    """The table on a terminal of so many columns, or in a pipe, without its colours."""
    out = _Terminal() if columns else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setenv("COLUMNS", str(columns or 80))
        patch.delenv("TERM", raising=False)
        output.table(items, COLUMNS, whole=WHOLE)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


@given(columns=st.integers(1, 250))
def test_no_number_id_or_name_of_a_column_is_cut(columns: int) -> None:
    told = shown(ITEMS, columns)
    words = set(told.split())
    assert words >= {*COLUMNS, "yes"}
    for item in ITEMS:
        assert words >= {str(item[name]) for name in WHOLE}
        # What is folded goes on in its own column: no letter of it is lost.
        for letters in set(str(item["actor"])):
            assert letters in told


@pytest.mark.parametrize("columns", [60, 80, 120, 250])
def test_a_table_is_no_wider_than_its_terminal(columns: int) -> None:
    first, *rows = shown(ITEMS, columns).splitlines()
    if first.split()[:2] == ["seq", "id"]:
        assert max(map(len, [first, *rows])) <= columns
    else:
        assert columns == 60, "a table where one fits"


def test_where_a_table_does_not_fit_each_item_has_a_line_for_each_field() -> None:
    blocks = shown(ITEMS, 40).split("\n\n")
    assert len(blocks) == len(ITEMS)
    for block, item in zip(blocks, ITEMS, strict=True):
        told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in block.strip().splitlines())
        assert told == {name: str(value) for name, value in item.items()}
    assert shown([], 20).split() == list(COLUMNS)


def test_in_a_pipe_it_is_always_a_table() -> None:
    wide = [{**item, "id": f"{item['id']}-{'x' * 250}"} for item in ITEMS]
    told = shown(wide, None)
    assert told.split()[: len(COLUMNS)] == list(COLUMNS)
    assert all(str(item["id"]) in told for item in wide)
