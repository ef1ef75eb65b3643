"""The house: what may import what, and what the public surface is."""

import ast
from pathlib import Path

import pytest

import ledger
import rules

ROOT = Path(__file__).parent.parent

# From the ground floor up: a file imports only from its own floor's folder or from below.
FLOORS = (
    {"ledger.errors", "ledger.memory"},
    {"ledger.canonical", "ledger.tensors"},
    {"ledger.caller", "ledger.changes", "ledger.digest"},
    {"ledger.events"},
    {"ledger.codecs"},
    {"ledger.blobs", "ledger.store"},
    {"ledger.lineage", "ledger.snapshots", "ledger.payload", "ledger.positions", "ledger.pruning"},
    {"ledger.factors", "ledger.on_device", "ledger.tiling"},
    {"ledger.deltas", "ledger.replay", "ledger.versions"},
    {"ledger.operands"},
    {"ledger.adapters"},
    {"ledger.engines", "ledger.history", "ledger.updates"},
    {"ledger.projector", "ledger.audit", "ledger.facts", "ledger.racing"},
    {"ledger.gc"},
    {"ledger.tip", "ledger.anchoring", "ledger.recording"},
    {"ledger.proposals"},
    {"ledger.adapters.plans"},
    {"ledger.writer"},
    {"ledger.monitoring", "ledger.log", "ledger.config"},
    {"ledger.ledger"},
    {"ledger.manager"},
    {"ledger"},
    {"rules"},
    {"api"},
)
EDGES = {"fastapi", "starlette", "uvicorn", "typer", "rich", "prometheus_client", "pydantic"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
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


def floor(module: str) -> int:
    """The floor of a dotted name, by its longest known prefix."""
    best = max(
        (
            (len(room), number)
            for number, rooms in enumerate(FLOORS)
            for room in rooms
            if module == room or module.startswith(room + ".")
        ),
        default=None,
    )
    assert best is not None, f"{module} stands on no floor: add it to the house"
    return best[1]


@pytest.mark.parametrize("path", modules("ledger", "rules", "api"), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path)
    for name in imports(path):
        if name.split(".")[0] not in {"ledger", "rules", "api"}:
            continue
        assert floor(name) <= floor(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", modules("ledger", "rules"), ids=name_of)
def test_only_the_faces_know_the_web_and_the_terminal(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & EDGES


@pytest.mark.parametrize("path", modules("rules"), ids=name_of)
def test_rules_use_only_the_public_names_of_the_ledger(path: Path) -> None:
    inner = {n for n in imports(path) if n.startswith("ledger.")}
    assert inner <= {f"ledger.{name}" for name in ledger.__all__}


@pytest.mark.parametrize("path", modules("ledger", "rules", "api", "migrations"), ids=name_of)
def test_extras_are_imported_where_they_are_used_only(path: Path) -> None:
    if name_of(path).startswith("ledger.engines.transformers") or name_of(path) == "api.loading":
        return
    outer = {name.split(".")[0] for name in imports(path)}
    assert not outer & {"transformers", "tokenizers", "peft"}
    assert not {n for n in imports(path) if n.startswith("ledger.engines.transformers")}


@pytest.mark.parametrize("path", modules("migrations"), ids=name_of)
def test_migrations_import_the_tables_only(path: Path) -> None:
    ours = {n for n in imports(path) if n.split(".")[0] in {"ledger", "rules", "api"}}
    allowed = ("ledger.store.tables", "ledger.store.triggers")
    assert all(name.startswith(allowed) for name in ours)


@pytest.mark.parametrize("path", modules("ledger", "rules", "api", "migrations"), ids=name_of)
def test_no_pickle(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "dill", "cloudpickle"}


def test_the_public_surface_is_what_it_was() -> None:
    assert sorted(ledger.__all__) == [
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
        "Pruned",
        "StateEngine",
        "Tip",
        "TorchEngine",
        "Verdict",
        "Write",
        "tensor_digest",
    ]
    assert all(hasattr(ledger, name) for name in ledger.__all__)


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
