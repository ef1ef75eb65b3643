"""Peers that are commands: DVC and MLflow keep each state of workload L as a safetensors file.

What is timed is what their user runs for an update: the file written, then the commands, each a
process of its own. Neither waits for the disk.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from safetensors.torch import load_file, save_file

from benchmarks.measure import Report, interleaved
from benchmarks.storage.exact import require_same
from benchmarks.storage.files import disk_bytes
from benchmarks.storage.limits import Machine
from benchmarks.storage.workloads import State, Workload, size_of

_UPDATES = 3
_FILE = "weights.safetensors"
_MB = 1_000_000
_ENVIRONMENT = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    **{
        f"GIT_{who}_{what}": "bench@localhost"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    },
}


class Tool(Protocol):
    """A tool's way of keeping a state, and of giving the one before the newest back."""

    def record(self, state: State) -> None:
        """Keep the state, which is the `n`th."""

    def restore(self) -> State:
        """The newest state, fetched from where the tool keeps it."""


class _Shell:
    """Runs commands in a folder, with an environment's own first."""

    def __init__(self, folder: Path, venv: Path) -> None:
        folder.mkdir()
        self.folder = folder
        path = f"{(venv / 'bin').resolve()}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, **_ENVIRONMENT, "PATH": path}
        self._environment.pop("PYTHONPATH", None)
        self._environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"

    def __call__(self, *command: str) -> str:
        ran = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True
        )
        if ran.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {ran.stderr}")
        return ran.stdout


class Dvc:
    """`dvc add` and `git commit`."""

    def __init__(self, folder: Path, venv: Path) -> None:
        self._run = _Shell(folder, venv)
        self._run("git", "init", "--quiet")
        self._run("dvc", "init", "--quiet")

    def record(self, state: State) -> None:
        save_file(state, self._run.folder / _FILE)
        self._run("dvc", "add", "--quiet", _FILE)
        self._run("git", "add", f"{_FILE}.dvc", ".gitignore")
        self._run("git", "commit", "--quiet", "--message", "update")

    def restore(self) -> State:
        (self._run.folder / _FILE).unlink()
        self._run("dvc", "checkout", "--quiet", f"{_FILE}.dvc")
        return load_file(self._run.folder / _FILE)


class MlFlow:
    """`mlflow artifacts log-artifact`, each state in a folder of one run."""

    def __init__(self, folder: Path, venv: Path) -> None:
        self._run = _Shell(folder, venv)
        self._run("mlflow", "experiments", "create", "--experiment-name", "weights")
        made = self._run("mlflow", "runs", "create", "--experiment-name", "weights")
        self._id = json.loads(made[made.index("{") :])["run_id"]
        self._states = 0

    def record(self, state: State) -> None:
        save_file(state, self._run.folder / _FILE)
        where = ("--run-id", self._id, "--artifact-path", str(self._states))
        self._run("mlflow", "artifacts", "log-artifact", "--local-file", _FILE, *where)
        self._states += 1

    def restore(self) -> State:
        where = f"{self._states - 1}/{_FILE}"
        into = self._run.folder / "fetched"
        options = ("--run-id", self._id, "--artifact-path", where, "--dst-path", str(into))
        self._run("mlflow", "artifacts", "download", *options)
        return load_file(into / _FILE)


_TOOLS: dict[str, Callable[[Path, Path], Tool]] = {
    "dvc add + git commit": Dvc,
    "mlflow artifacts log-artifact": MlFlow,
}


def record_by_commands(
    report: Report, workload: Workload, machine: Machine, folder: Path, venv: Path
) -> None:
    """Add a tool's rows: time an update, time to fetch, bytes on disk."""
    state, size = workload.state, size_of(workload.state)
    tools = {name: make(folder / name.split()[0], venv) for name, make in _TOOLS.items()}
    for tool in tools.values():
        tool.record(state)
    before = {name: disk_bytes(folder / name.split()[0]) for name in tools}
    medians = interleaved(
        _UPDATES,
        step=lambda _: workload.step(),
        **{name: _recording(tool, state) for name, tool in tools.items()},
        write=lambda _: machine.write(size),
    )
    kept = {name: disk_bytes(folder / name.split()[0]) - before[name] for name in tools}
    restored: dict[str, State] = {}
    fetched = interleaved(
        1, **{name: _restoring(name, tool, restored) for name, tool in tools.items()}
    )
    for name in tools:
        require_same(restored[name], state, name)
        took = medians[name]
        report.add(
            f"peer {name}: record",
            1e3 * took,
            "ms",
            limit=took / medians["write"],
            limit_of="write",
        )
        report.add("  on disk, an update", kept[name] / _UPDATES / _MB, "MB")
        report.add("  fetch the newest, equal bit for bit", 1e3 * fetched[name], "ms", ok=True)


def _recording(tool: Tool, state: State) -> Callable[[int], None]:
    return lambda _: tool.record(state)


def _restoring(name: str, tool: Tool, restored: dict[str, State]) -> Callable[[int], None]:
    def run(_: int) -> None:
        restored[name] = tool.restore()

    return run
