"""The house: what may import what, and what the public surface is."""

import ast
from pathlib import Path

import pytest

import weightledger
from weightledger import rules

ROOT = Path(__file__).parent.parent
PACKAGE = "weightledger"
FOLDERS = ("ledger", "rules", "api", "migrations")

# From the ground floor up, each folder on one floor: a file imports from its own folder or below.
FLOORS = (
    {"ledger.secrets", "ledger.permissions"},
    {"ledger.errors"},
    {"ledger.plugins"},
    {"ledger.config", "ledger.http", "ledger.json_text", "ledger.tensors", "ledger.sql"},
    {"ledger.events", "ledger.codecs", "ledger.blobs", "ledger.access", "migrations"},
    {"ledger.store", "ledger.adapters"},
    {"ledger.history"},
    {"ledger.engines", "ledger.audit"},
    {"ledger.projection"},
    {"ledger.writing"},
    {"ledger.retention", "ledger.monitoring"},
    {"ledger.debug"},
    {"ledger.log", "ledger.backup", "ledger.results"},
    {"ledger.opening", "ledger.checkpoints"},
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


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """What a file imports of this package, without the package's name."""
    inside = {name for name in imports(path) if name.startswith(f"{PACKAGE}.")}
    return {name.removeprefix(f"{PACKAGE}.") for name in inside}


def floor(name: str) -> tuple[int, str]:
    """The floor and the folder of a dotted name."""
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            if name == room or name.startswith(room + "."):
                return number, room
    raise AssertionError(f"{name} stands on no floor: add it to the house")


def is_public(name: str) -> bool:
    return name in weightledger.__all__


@pytest.mark.parametrize("path", modules("ledger", "rules", "api")[1:], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    if name_of(path) == "ledger":
        return
    own, folder = floor(name_of(path))
    for name in own_imports(path):
        if is_public(name):
            assert folder in ("rules", "api"), f"{path} imports the public surface"
            continue
        there, other = floor(name)
        assert there < own or other == folder, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", modules(*FOLDERS, "tests", "benchmarks"), ids=str)
def test_everything_is_imported_under_one_name(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & set(FOLDERS)


@pytest.mark.parametrize("path", modules("ledger", "rules"), ids=name_of)
def test_only_the_faces_know_the_web_and_the_terminal(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & EDGES


@pytest.mark.parametrize("path", modules("rules"), ids=name_of)
def test_rules_use_only_the_public_names_of_the_ledger(path: Path) -> None:
    outside = {name for name in own_imports(path) if not name.startswith("rules.")}
    assert all(map(is_public, outside)), outside


@pytest.mark.parametrize("path", modules(*FOLDERS), ids=name_of)
def test_extras_are_imported_where_they_are_used_only(path: Path) -> None:
    if name_of(path).startswith(("ledger.engines.transformers", "api.server.loading")):
        return
    outer = {name.split(".")[0] for name in imports(path)}
    assert not outer & {"transformers", "tokenizers", "peft"}
    inner = {name for name in own_imports(path) if name.startswith("ledger.engines.transformers")}
    assert not inner


@pytest.mark.parametrize("path", modules("migrations"), ids=name_of)
def test_migrations_are_frozen_and_import_nothing_of_ours(path: Path) -> None:
    assert not own_imports(path)


def called(path: Path) -> set[str]:
    """What a file calls, as far as it is a dotted name."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }


@pytest.mark.parametrize("path", modules("ledger", "rules", "api"), ids=name_of)
def test_http_clients_are_made_in_one_place(path: Path) -> None:
    """Where it is decided what goes through a proxy."""
    ways = {"Client", "AsyncClient", "get", "post", "put", "request", "stream"}
    made = {name for name in called(path) if name.startswith("httpx2.")}
    if name_of(path) != "ledger.http":
        assert not {name.removeprefix("httpx2.") for name in made} & ways
    assert not {"urlopen", "urllib.request.urlopen", "http.client.HTTPConnection"} & called(path)


@pytest.mark.parametrize("path", modules("ledger", "rules", "api"), ids=name_of)
def test_paths_become_urls_in_one_place(path: Path) -> None:
    if name_of(path) == "ledger.config":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            assert not str(node.values[0].value).startswith(("sqlite:", "file:"))


@pytest.mark.parametrize("path", modules(*FOLDERS), ids=name_of)
def test_no_pickle(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "dill", "cloudpickle"}


def test_the_public_surface_is_what_it_was() -> None:
    assert sorted(weightledger.__all__) == [
        "Caller",
        "DynamicModelManager",
        "DynamicUpdateConfig",
        "Engine",
        "Event",
        "IncrementalUpdateRequest",
        "InplaceEngine",
        "InvalidRequest",
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
        "Planner",
        "PluginError",
        "Pruned",
        "Staged",
        "StateEngine",
        "TorchEngine",
        "Verdict",
        "Write",
        "load_plugin",
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
