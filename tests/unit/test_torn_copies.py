"""A database without tables: a copy that was torn off its log, or one that is just being made."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from weightledger.ledger.sql import torn_copies
from weightledger.ledger.sql.database import Database

LOOKS = ("exists", "open", "stat")


def after_look(number: int, patch: pytest.MonkeyPatch, do: Callable[[], None]) -> Callable[[], int]:
    """Have something done after the look at a file with this number; says how many there were."""
    looks = 0

    def looking(name: str) -> Callable[..., Any]:
        look = getattr(Path, name)

        def looked(path: Path, *arguments: Any, **named: Any) -> Any:
            nonlocal looks
            seen = look(path, *arguments, **named)
            looks += 1
            if looks == number:
                do()
            return seen

        return looked

    for name in LOOKS:
        patch.setattr(Path, name, looking(name))
    return lambda: looks


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_that_another_process_begins_to_make_is_not_torn(tmp_path: Path, number: int) -> None:
    """Whichever look at its files was the last before that."""
    file = tmp_path / "ledger.db"
    file.touch()
    with ExitStack() as others, pytest.MonkeyPatch.context() as patch:
        database = others.enter_context(closing(Database.connect(f"sqlite:///{file}")))

        def begin() -> None:
            patch.undo()
            others.enter_context(torn_copies.making(file))
            database.prepare()

        looks = after_look(number, patch, begin)
        assert not torn_copies.is_torn(file)
        patch.undo()
        if looks() < number:  # it was over before
            begin()
        assert torn_copies.is_torn(file) is False
        (tmp_path / "ledger.db-new").unlink()
        assert torn_copies.is_torn(file), "or this would show nothing"
