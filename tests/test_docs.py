"""The README and the pages are true: sessions run, programs run, links lead somewhere."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests import warm
from tests.serving import Server, serving
from weightledger.ledger.events import decode

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("[A-Z]*.md")]
PAGES = list(dict.fromkeys(PAGES))
FORMATS = (ROOT / "docs/formats.md").read_text()

# What differs from run to run: times, ids made of them, digests, measurements.
VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b(?:\d\d:\d\d:\d\d|\d\d-\d\d \d\d:\d\d)\b"), "TIME"),  # around midnight
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"(update_\d+|v\d+)_\d{10}"), r"\1_UNIX"),
    (re.compile(r"\d+\.\d+"), "NUMBER"),
    (re.compile(r" +"), " "),
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def programs() -> list[tuple[Path, str]]:
    examples = [(path, path.read_text()) for path in sorted((ROOT / "examples").glob("*.py"))]
    return [(page, text) for page in PAGES for text in blocks(page, "python")] + examples


def session(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page's session with the output lines printed below it."""
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, *output = part.rstrip("\n").split("\n")
            yield command, output


def settled(line: str) -> str:
    for pattern, word in VARIES:
        line = pattern.sub(word, line)
    return line.strip()


def matches(expected: str, line: str) -> bool:
    pattern = ".*".join(re.escape(piece) for piece in settled(expected).split("…"))
    return re.fullmatch(pattern, settled(line)) is not None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "weightledger-data") as running:
        yield running


# The longest has a module of its own, tests/debug/test_page.py, so that it runs beside the others.
SESSIONS = [page for page in PAGES if blocks(page, "console") and page.name != "debugging.md"]


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.name)
def test_a_session_prints_what_the_page_shows(page: Path, server: Server, tmp_path: Path) -> None:
    play(page, server, tmp_path)


def play(page: Path, server: Server, tmp_path: Path) -> None:
    """Give the commands of a page to a server, and compare what they print."""
    bin_dir = tmp_path / ".venv/bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin_dir / "python").chmod(0o755)
    with warm.shell_command(bin_dir / "weightledger"):
        for command, expected in session(page):
            check(command, expected, server, bin_dir, tmp_path)


def check(command: str, expected: list[str], server: Server, bin_dir: Path, tmp_path: Path) -> None:
    """Give one command, and compare what it prints."""
    result = subprocess.run(
        command.replace("localhost:2242", f"localhost:{server.port}"),
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "NO_COLOR": "1",
        },
    )
    assert result.returncode == 0, f"{command}\n{result.stderr}"
    lines = iter(result.stdout.splitlines())
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        assert any(matches(line, got) for got in lines), (
            f"{command}\nexpected: {settled(line)}\ngot:\n{result.stdout}"
        )


def test_the_readme_has_a_session() -> None:
    assert len(list(session(ROOT / "README.md"))) >= 9


@pytest.mark.parametrize(
    ("page", "program"),
    programs(),
    ids=[f"{page.name}-{number}" for number, (page, _) in enumerate(programs())],
)
def test_the_programs_run(page: Path, program: str, tmp_path: Path) -> None:
    ran = warm.run(program=program, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles}
            assert heading in slugs, target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page: Path) -> None:
    assert f"(docs/{page.name}" in (ROOT / "README.md").read_text()


def test_the_map_of_the_house_is_true() -> None:
    """Every folder of the core is on it, and every file it names is there."""
    text = (ROOT / "docs/architecture.md").read_text()
    wings = [path for path in (ROOT / "ledger").iterdir() if (path / "__init__.py").exists()]
    for wing in wings:
        assert f"**`{wing.name}/`**" in text
    for name in re.findall(r"`((?:api|ledger|rules|migrations|tests|docs)/[\w/.]+)[ `]", text):
        assert name.startswith("migrations/versions/NNNN") or (ROOT / name).exists(), name
    homes = [*wings, *(ROOT / "rules").glob("*/"), *(ROOT / "api").glob("*/"), ROOT / "rules"]
    homes += [ROOT / "ledger", *ROOT.glob("tests/*/"), *ROOT.glob("migrations/*/")]
    for name in re.findall(r"`(\w+\.py)`", text):
        assert any((home / name).exists() for home in homes), name


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert (ROOT / "README.md").stat().st_size <= 14_000


def test_the_vectors_of_the_digests() -> None:
    """Recomputed from the page's words with plain BLAKE3."""
    rows = re.findall(
        r"^\| `weights/(\S+)` (\w+) \[(\S+)\].*\| `(\w+)` \| `(\w{64})` \|$", FORMATS, re.M
    )
    assert len(rows) == 2
    lines = ["weights/head.weight\t=\tweights/fc.weight\n"]
    for name, dtype, shape, data, digest in rows:
        assert blake3(blake3(bytes.fromhex(data)).digest()).hexdigest() == digest
        lines.append(f"weights/{name}\t{dtype}\t{shape}\t{digest}\n")
    state = re.search(r"^\| state of both.*\| \| `(\w{64})` \|$", FORMATS, re.M)
    assert state is not None
    assert blake3("".join(sorted(lines)).encode()).hexdigest() == state[1]


def test_the_vector_of_an_event() -> None:
    (header,) = (block.strip().encode() for block in blocks(ROOT / "docs/formats.md", "json"))
    stated = re.search(r"has the `event_hash` `(\w{64})`", FORMATS)
    assert stated is not None
    assert hashlib.sha256(b"\0" + header).hexdigest() == stated[1]
    event = decode(header)
    assert (event.name, event.hash.hex()) == ("event_0", stated[1])


def test_ci_runs_only_what_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text()
    commands = re.findall(r"^make \w+", script, re.M)
    assert commands == ["make test"]
    assert "make test" in (ROOT / "README.md").read_text()
