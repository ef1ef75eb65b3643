"""What is kept of compiled loops fits the code that they are made of."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import pytest

import weightledger
from tests.test_architecture import ROOT, imports, modules, name_of
from weightledger.ledger.tensors import compiling
from weightledger.ledger.tensors.compiling import compiled

_INNER = """
from weightledger.ledger.tensors.compiling import compiled

@compiled
def inner(number):
    return number + {added}
"""
_OUTER = """
from weightledger.ledger.{folder}.inner import inner
from weightledger.ledger.tensors.compiling import compiled

@compiled
def outer(number):
    return inner(number)
"""
_CALL = """
from weightledger.ledger.{folder}.outer import outer
print(outer(1), sum(outer.stats.cache_hits.values()), sum(outer.stats.cache_misses.values()))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's code, to be changed."""
    package, to = Path(weightledger.__file__).parent, tmp_path / "weightledger"
    shutil.copytree(package / "ledger", to / "ledger", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package / "__init__.py", to)
    return tmp_path


@pytest.mark.parametrize("folder", ["codecs", "tensors"])
def test_a_loop_takes_in_what_another_file_says_now(copy: Path, folder: str) -> None:
    at = copy / "weightledger/ledger" / folder
    (at / "outer.py").write_text(_OUTER.format(folder=folder))

    def called(added: int) -> list[int]:
        (at / "inner.py").write_text(_INNER.format(added=added))
        ran = subprocess.run(
            [sys.executable, "-B", "-c", _CALL.format(folder=folder)],
            check=True,
            capture_output=True,
            text=True,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(copy / "kept")},
        )
        return [int(word) for word in ran.stdout.split()]

    assert called(10) == [11, 0, 1]
    assert called(10) == [11, 1, 0]  # kept
    assert called(20) == [21, 0, 1]
    assert called(10) == [11, 1, 0]  # what was kept for this code is there still


def test_two_processes_that_compile_at_once_keep_each_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba's own files had the second one's loop under the first one's number, for good."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    one, other = (cast(Any, compiled(doubled)) for _ in range(2))
    save, wide, narrow = one._cache._cache_file._save_data, np.ones(1), np.ones(1, np.float32)

    def meanwhile(*of: Any) -> None:
        other(narrow)
        save(*of)

    monkeypatch.setattr(one._cache._cache_file, "_save_data", meanwhile)
    monkeypatch.setattr(
        other._cache._cache_file, "_load_index", dict
    )  # looked before the one wrote
    assert one(wide) == 2
    for lanes in (wide, narrow):
        later = cast(Any, compiled(doubled))
        assert later(lanes) == 2
        assert sum(later.stats.cache_hits.values()) == 1
        assert [str(of[0].dtype) for of in later.signatures] == [str(lanes.dtype)]


def doubled(lanes: Any) -> Any:
    """A loop."""
    return lanes[0] + lanes[0]


def loops() -> list[Path]:
    """The files that have loops."""
    compiling_ = "weightledger.ledger.tensors.compiling"
    found = [
        path
        for path in modules("ledger", "rules", "api")
        if f"{compiling_}.compiled" in imports(path)
        or f"{compiling_}.compiled_for_few" in imports(path)
    ]
    assert len(found) > 8
    return found


def test_loops_that_take_others_in_stand_where_all_code_is_looked_at() -> None:
    folders = tuple(f"ledger.{folder}." for folder in compiling._FOLDERS)
    types = {"weightledger.ledger.tensors.spec.Lanes"}
    for path in loops():
        own = {one for one in imports(path) if one.startswith("weightledger.")} - types
        taken_in = {one for one in own if ".tensors.compiling." not in one}
        if name_of(path).startswith(folders):
            folder = tuple(f"weightledger.{one}" for one in folders)
            taken_in = {one for one in taken_in if not one.startswith(folder)}
        assert not taken_in, f"{path}: {taken_in}"


def test_nothing_is_kept_in_another_way() -> None:
    kept = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules("ledger", "rules", "api")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword)
        and node.arg == "cache"
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
    ]
    assert kept == []
