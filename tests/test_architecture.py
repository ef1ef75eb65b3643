"""The house: what may import what, and what the public surface is."""

import ast
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import weightledger
from tests.conftest import LONGEST
from weightledger import rules

ROOT = Path(__file__).parent.parent
PACKAGE = "weightledger"
FOLDERS = ("ledger", "rules", "api", "migrations")

# From the ground floor up, each folder on one floor: a file imports from its own folder or below.
FLOORS = (
    {"ledger.secrets", "ledger.permissions", "ledger.heap"},
    {"ledger.errors"},
    {"ledger.plugins", "ledger.forks", "ledger.interrupts"},
    {
        *("ledger.config", "ledger.http", "ledger.json_text"),
        *("ledger.tensors", "ledger.sql", "ledger.parallel"),
    },
    {"ledger.events", "ledger.codecs", "ledger.blobs", "ledger.access", "migrations"},
    {"ledger.store", "ledger.adapters"},
    {"ledger.history"},
    {"ledger.engines", "ledger.audit"},
    {"ledger.projection"},
    {"ledger.writing"},
    {
        *("ledger.retention", "ledger.redaction", "ledger.rotation"),
        *("ledger.monitoring", "ledger.sharding"),
    },
    {"ledger.debug", "ledger.fleet"},
    {"ledger.bundles"},
    {"ledger.questions"},
    {"ledger.log", "ledger.backup", "ledger.transfer", "ledger.results"},
    {"ledger.restoring", "ledger.opening", "ledger.checkpoints", "ledger.standing"},
    {"ledger.following"},
    {"ledger.ledger"},
    {"ledger.manager"},
    {"rules"},
    {"api"},
)
EDGES = {"fastapi", "starlette", "uvicorn", "typer", "rich", "prometheus_client", "pydantic"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a file, without the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module", autouse=True)
def no_collector() -> Iterator[None]:
    """Half of the time went into looking at the nodes of all code for garbage, and later tests
    of the process looked at them too."""
    gc.disable()
    yield
    nodes.cache_clear()
    gc.enable()


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All that a file consists of; each is parsed once."""
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def outer(path: Path) -> set[str]:
    """The packages that a file imports from."""
    return {name.split(".")[0] for name in imports(path)}


def own_imports(path: Path) -> set[str]:
    """What a file imports of this package, without the package's name."""
    inside = {name for name in imports(path) if name.startswith(f"{PACKAGE}.")}
    return {name.removeprefix(f"{PACKAGE}.") for name in inside}


@functools.cache
def floor(name: str) -> tuple[int, str]:
    """The floor and the folder of a dotted name."""
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            if name == room or name.startswith(room + "."):
                return number, room
    raise AssertionError(f"{name} stands on no floor: add it to the house")


def is_public(name: str) -> bool:
    return name in weightledger.__all__


Check = Callable[[Path], Iterable[str]]


def none_in(paths: list[Path], wrong: Check) -> None:
    """Hold that `wrong` finds nothing in any of these files; what it finds is said by file."""
    assert paths
    by_file = {str(path.relative_to(ROOT)): sorted(wrong(path)) for path in paths}
    assert {name: what for name, what in by_file.items() if what} == {}


def test_imports_point_down() -> None:
    def wrong(path: Path) -> Iterator[str]:
        own, folder = floor(name_of(path))
        for name in own_imports(path):
            if is_public(name):
                if folder not in ("rules", "api"):
                    yield f"imports {name} by the public surface"
                continue
            there, other = floor(name)
            if there >= own and other != folder:
                yield f"imports {name}"

    none_in(
        [path for path in modules("ledger", "rules", "api") if name_of(path) != "ledger"], wrong
    )


def test_everything_is_imported_under_one_name() -> None:
    none_in(modules(*FOLDERS, "tests", "benchmarks"), lambda path: outer(path) & set(FOLDERS))


def test_only_the_faces_know_the_web_and_the_terminal() -> None:
    none_in(modules("ledger", "rules"), lambda path: outer(path) & EDGES)


def test_rules_use_only_the_public_names_of_the_ledger() -> None:
    def wrong(path: Path) -> set[str]:
        outside = {name for name in own_imports(path) if not name.startswith("rules.")}
        return {name for name in outside if not is_public(name)}

    none_in(modules("rules"), wrong)


def test_extras_are_imported_where_they_are_used_only() -> None:
    used = "ledger.engines.transformers"

    def wrong(path: Path) -> set[str]:
        if name_of(path).startswith((used, "api.server.loading")):
            return set()
        inner = {name for name in own_imports(path) if name.startswith(used)}
        return outer(path) & {"transformers", "tokenizers", "peft"} | inner

    none_in(modules(*FOLDERS), wrong)


def test_migrations_are_frozen_and_import_nothing_of_ours() -> None:
    none_in(modules("migrations"), own_imports)


def called(path: Path) -> set[str]:
    """What a file calls, as far as it is a dotted name."""
    return {
        ast.unparse(node.func)
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }


# Each installed beside the program it is for, of which one is a fork of the other.
_TWINS = {"LedgerWeights", "StagedState"}


def test_two_things_never_share_a_name() -> None:
    """Replies of the REST API are called like what they show; everything else has its own name."""
    named: dict[str, list[Path]] = {}
    for path in [*modules(*FOLDERS), *(ROOT / "src" / PACKAGE).glob("*.py")]:
        if (ROOT / "api/rest/answers") in path.parents:
            continue
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                named.setdefault(node.name, []).append(path)
    shared = {name: paths for name, paths in named.items() if len(paths) > 1}
    assert {name: paths for name, paths in shared.items() if name not in _TWINS} == {}


def test_http_clients_are_made_in_one_place() -> None:
    """Where it is decided what goes through a proxy."""
    ways = {"Client", "AsyncClient", "get", "post", "put", "request", "stream"}
    others = {"urlopen", "urllib.request.urlopen", "http.client.HTTPConnection"}

    def wrong(path: Path) -> set[str]:
        ours = set() if name_of(path) == "ledger.http" else {f"httpx2.{way}" for way in ways}
        return called(path) & (ours | others)

    none_in(modules("ledger", "rules", "api"), wrong)


def test_paths_become_urls_in_one_place() -> None:
    def wrong(path: Path) -> Iterator[str]:
        for node in nodes(path):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                text = str(node.values[0].value)
                if text.startswith(("sqlite:", "file:")) and name_of(path) != "ledger.config":
                    yield text

    none_in(modules("ledger", "rules", "api"), wrong)


def test_no_pickle() -> None:
    none_in(modules(*FOLDERS), lambda path: outer(path) & {"pickle", "dill", "cloudpickle"})


def test_the_public_surface_is_what_it_was() -> None:
    assert sorted(weightledger.__all__) == [
        "Caller",
        "DynamicModelManager",
        "DynamicUpdateConfig",
        "Engine",
        "Event",
        "Given",
        "IncrementalUpdateRequest",
        "InplaceEngine",
        "InvalidRequest",
        "Kept",
        "Ledger",
        "LedgerError",
        "Live",
        "LoRAConfig",
        "Log",
        "ModelConfig",
        "ModelVersion",
        "NotFound",
        "OperationDisabled",
        "Plan",
        "PluginError",
        "Pruned",
        "Staged",
        "StateEngine",
        "TorchEngine",
        "Verdict",
        "Write",
        "add_command",
        "command_digest",
        "derives",
        "load_plugin",
        "metadata_text",
        "plugin_ids",
        "sign_test",
        "tensor_digest",
    ]
    assert all(hasattr(weightledger, name) for name in weightledger.__all__)


def test_the_public_surface_of_the_rules_is_what_it_was() -> None:
    assert sorted(rules.__all__) == [
        "Activity",
        "DTESNDynamicIntegration",
        "DTESNLearningConfig",
        "Description",
        "DiscountedUcb",
        "Feedback",
        "FeedbackThresholds",
        "Fixed",
        "ForeignState",
        "Guards",
        "Judgement",
        "PairedGate",
        "Proposal",
        "RULES",
        "Rule",
        "RuleError",
        "Selector",
        "UnknownRequest",
        "UnknownRule",
        "UnknownStream",
        "config_of",
        "describe",
        "fisher_diagonal",
        "get_rule",
        "init",
        "judge",
        "make_rule",
        "perturbation",
        "propose",
        "rule_ids",
    ]
    assert all(hasattr(rules, name) for name in rules.__all__)


def test_the_files_of_tests_that_begin_first_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / name).exists()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_tests_wait_for_answers_as_long_as_any_load_explains() -> None:
    """httpx2 gives up after five seconds where nobody says otherwise."""
    ways = {f"httpx2.{way}" for way in ("Client", "get", "post", "put", "delete", "stream")}

    def wrong(path: Path) -> Iterator[str]:
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ways:
                said = {keyword.arg for keyword in node.keywords}
                if not said & {"timeout", "transport", None}:
                    yield f"line {node.lineno}"

    none_in(modules("tests"), wrong)
