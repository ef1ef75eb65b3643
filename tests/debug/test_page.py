"""The page about debugging is true: its session prints what it shows."""

from pathlib import Path

from tests.serving import serving
from tests.test_docs import ROOT, play


def test_its_session_prints_what_it_shows(tmp_path: Path) -> None:
    with serving(tmp_path / "weightledger-data") as server:
        play(ROOT / "docs/debugging.md", server, tmp_path)
