"""What is compared as rows of a table, for CSV on every face."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightledger.api.plain_text import cell

Item = Mapping[str, Any]

TENSOR_COLUMNS = (
    *("name", "kind", "dtype", "shape", "elements", "changed", "share", "largest_change"),
    *("mean_change", "change_norm", "norm_before", "norm_after", "relative_norm", "cosine"),
    *("first_index", "not_finite", "became_not_finite", "effective_rank", "effective_rank_note"),
)
GROUP_COLUMNS = (
    *("name", "tensors", "tensors_changed", "elements", "changed", "share", "largest_change"),
    *("change_norm", "relative_norm", "became_not_finite"),
)
BLAME_COLUMNS = (
    *("id", "seq", "recorded_at", "changed", "actor", "reason", "operation", "rule", "known"),
    *("live", "undone_by"),
)
EACH_COLUMNS = ("layer", "id", "seq", "updates", "relative_norm")


def diff_rows(found: Item, by: str = "tensor") -> tuple[Sequence[str], list[Item]]:
    """The columns and rows of a diff by tensor, layer or module, or of one of each update."""
    if found["object"] == "diff.each":
        return EACH_COLUMNS, list(_cells(found))
    if by == "tensor":
        return TENSOR_COLUMNS, list(found["by_tensor"])
    return GROUP_COLUMNS, list(found[f"{by}s"])


def blame_rows(found: Item) -> tuple[Sequence[str], list[Item]]:
    """The columns and rows of who touched a parameter."""
    values = ("norm_before", "norm_after") if found["index"] is None else ("before", "after")
    return (*BLAME_COLUMNS[:4], *values, *BLAME_COLUMNS[4:]), list(found["touches"])


def csv_text(columns: Sequence[str], rows: Sequence[Item]) -> str:
    """CSV with a header; texts are made safe for spreadsheets."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return out.getvalue()


def _cells(found: Item) -> Iterator[Item]:
    for layer in found["layers"]:
        for column, value in zip(found["columns"], layer["relative_norm"], strict=True):
            if value is not None:
                yield {"layer": layer["name"], **column, "relative_norm": value}


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return cell(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else value
