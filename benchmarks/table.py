"""All results as one Markdown table each, to be pasted into the README.

python -m benchmarks.table
"""

import json
from typing import Any

from benchmarks.measure import RESULTS, Row, cells

_HEAD = ("What", "Value", "Ratio", "÷ limit", "Goal", "Held")


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        body = json.loads(path.read_text())
        if "title" not in body:  # a benchmark with figures of its own form
            print(f"<!-- {path.name} has no rows of this form -->\n")
            continue
        machine = body["machine"]
        print(f"{body['title']} ({machine['cpu']}, {machine['cores']} cores, {machine['at']})\n")
        group = None
        for fields in body["rows"]:
            row = Row(**fields)
            if row.group != group:
                group = row.group
                _start(group)
            _line(cells(row))
        print()


def _start(group: str) -> None:
    if group:
        print(f"\n**{group}**\n")
    _line(_HEAD)
    _line(("---",) * len(_HEAD))


def _line(columns: tuple[Any, ...]) -> None:
    print("| " + " | ".join(str(column).strip() for column in columns) + " |")


if __name__ == "__main__":
    main()
