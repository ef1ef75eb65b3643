"""The README is true: its session runs, its programs run, its vectors are recomputed."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.serving import Server, serving
from weightledger.ledger.events.event import decode

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()

# What differs from run to run: times, ids made of them, digests, measurements.
VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"(update_\d+|v\d+)_\d{10}"), r"\1_UNIX"),
    (re.compile(r"\d+\.\d+"), "NUMBER"),
    (re.compile(r" +"), " "),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S)


def session() -> Iterator[tuple[str, list[str]]]:
    """Each command of the session with the output lines printed below it."""
    for block in blocks("console"):
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("readme") / "data") as running:
        yield running


def test_the_first_session_prints_what_the_readme_shows(server: Server, tmp_path: Path) -> None:
    bin_dir = tmp_path / ".venv/bin"
    bin_dir.mkdir(parents=True)
    script = bin_dir / "weightledger"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m weightledger "$@"\n')
    script.chmod(0o755)
    ran = 0
    for command, expected in session():
        result = subprocess.run(
            command.replace("localhost:2242", f"localhost:{server.port}"),
            shell=True,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "WEIGHTLEDGER_DATA_DIR": str(server.folder),
                "PYTHONPATH": str(ROOT),
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
        ran += 1
    assert ran >= 9


@pytest.mark.parametrize("program", blocks("python"), ids=lambda text: text.split("\n", 1)[0])
def test_the_programs_run(program: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr


def test_the_vectors_of_the_digests() -> None:
    """Recomputed from the README's words with plain BLAKE3."""
    rows = re.findall(
        r"^\| `weights/(\S+)` (\w+) \[(\S+)\].*\| `(\w+)` \| `(\w{64})` \|$", TEXT, re.M
    )
    assert len(rows) == 2
    lines = ["weights/head.weight\t=\tweights/fc.weight\n"]
    for name, dtype, shape, data, digest in rows:
        assert blake3(blake3(bytes.fromhex(data)).digest()).hexdigest() == digest
        lines.append(f"weights/{name}\t{dtype}\t{shape}\t{digest}\n")
    state = re.search(r"^\| state of both.*\| \| `(\w{64})` \|$", TEXT, re.M)
    assert state is not None
    assert blake3("".join(sorted(lines)).encode()).hexdigest() == state[1]


def test_the_vector_of_an_event() -> None:
    (header,) = (block.strip().encode() for block in blocks("json"))
    stated = re.search(r"has the `event_hash` `(\w{64})`", TEXT)
    assert stated is not None
    assert hashlib.sha256(b"\0" + header).hexdigest() == stated[1]
    event = decode(header)
    assert (event.name, event.hash.hex()) == ("event_0", stated[1])


def test_ci_runs_only_what_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text()
    commands = re.findall(r"^make \w+", script, re.M)
    assert commands == ["make test"]
    assert "make test" in TEXT
