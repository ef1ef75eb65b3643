"""What is installed: one package, from a clean checkout, in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).parent.parent
BUILD = "from setuptools import build_meta as b; b.build_{}({!r})"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution, made from what git would check out."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        source, target = ROOT / name, checkout / name
        if not source.exists():  # removed and not yet committed
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, target)
    for kind in ("sdist", "wheel"):
        build(kind, checkout, folder)
    return folder


def build(kind: str, source: Path, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind, str(folder))],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; dependencies are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (wheel,) = built.glob("*.whl")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install"),
            *("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", wheel),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    bring_loops(site / "weightledger")
    return folder / "bin/python"


def bring_loops(package: Path) -> None:
    """What was compiled here of the same code: a server compiles it before it is ready, which
    would take longer than all that this file looks at. `tests/unit/test_compiling.py` has when
    what is kept is taken."""
    for kept in (ROOT / "ledger").rglob("__pycache__/*.nb[ic]"):
        beside = package / kept.relative_to(ROOT)
        beside.parent.mkdir(exist_ok=True)
        shutil.copyfile(kept, beside)
    for source in (ROOT / "ledger").rglob("*.py"):
        shutil.copystat(source, package / source.relative_to(ROOT))  # by which it is kept


def run(python: Path, folder: Path, *arguments: str, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments], cwd=folder, env={**clean, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_one_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"weightledger"}


def test_the_wheel_has_every_file_of_the_checkout(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    kept = {name for name in contents(wheel) if name.startswith("weightledger/")}
    folders = ("ledger", "api", "rules", "migrations")
    checkout = built / "checkout"
    files = [path for folder in folders for path in (checkout / folder).rglob("*")]
    wanted = {f"weightledger/{path.relative_to(checkout)}" for path in files if path.is_file()}
    own = {f"weightledger/{p.name}" for p in (checkout / "src/weightledger").iterdir()}
    wanted |= own - {f"weightledger/{folder}" for folder in folders}
    assert kept == wanted


def test_a_wheel_from_the_source_distribution_is_the_same(built: Path, tmp_path: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    subprocess.run(["tar", "-xf", str(source), "-C", str(tmp_path)], check=True)
    (unpacked,) = tmp_path.iterdir()
    again = tmp_path / "again"
    again.mkdir()
    build("wheel", unpacked, again)
    (one,), (other,) = built.glob("*.whl"), again.glob("*.whl")
    assert contents(one) == contents(other)


OTHERS = ("api", "ledger", "rules", "migrations")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that has folders of our names on its path, none of which may be imported."""
    for name in OTHERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the project')")
    return tmp_path


def test_it_is_imported_from_the_environment(python: Path, tmp_path: Path) -> None:
    script = (
        "import weightledger, sys; [getattr(weightledger, n) for n in weightledger.__all__];"
        "import weightledger.rules, weightledger.api; print(weightledger.__file__)"
    )
    assert str(python.parent.parent) in run(python, tmp_path, "-c", script)


def test_plugins_are_found_and_load(python: Path, tmp_path: Path) -> None:
    script = (
        "from importlib.metadata import distribution;"
        "[print(e.group, e.name, e.value) for e in distribution('weightledger').entry_points]"
    )
    rows = [line.split() for line in run(python, tmp_path, "-c", script).splitlines()]
    groups = {group for group, _, _ in rows}
    assert groups == {"console_scripts", "vllm.general_plugins", "aphrodite.general_plugins"}
    modules = [value.split(":")[0] for _, _, value in rows]
    find = f"import importlib.util as u; print([m for m in {modules} if not u.find_spec(m)])"
    assert run(python, tmp_path, "-c", find) == "[]\n"


@pytest.fixture
def server(python: Path, project: Path) -> Iterator[Server]:
    command = (str(python.parent / "weightledger"), "serve")
    serving = Server(
        project / "data", command=command, cwd=project, env={"PYTHONPATH": str(project)}
    )
    try:
        yield serving.start()
    finally:
        serving.stop()


def test_it_serves_in_a_project_with_folders_of_those_names(server: Server) -> None:
    with server.client() as client:
        body = {"parameter_name": "2.bias", "update_data": 0.25, "learning_rate": 0.01}
        reply = client.post("/v1/models/incremental_update", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["data"]["update_count"] == 1


def test_the_module_is_the_command(python: Path, tmp_path: Path) -> None:
    assert "serve" in run(python, tmp_path, "-m", "weightledger", "--help")
