"""What runs a fleet is sound: the image's steps, and the chart against Kubernetes' own schemas."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import kubernetes_validate
import pytest
import yaml
from annotated_types import Le

from tests.deploy.templates import render
from weightledger.api.cli import COMMANDS
from weightledger.api.server.settings import Settings
from weightledger.api.server.sources import settings_of

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "deploy/helm/weightledger"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "everything": {
        "blobUrl": "s3://bucket/ledger",
        "vllm": {"replicas": 2, "model": "/models/policy", "args": ["--dtype", "bfloat16"]},
        "networkPolicy": {"clients": {"app": "gateway"}},
        "prepare": {"of": "canary", "percent": 25},
        "rolling": 2,
    },
    "no network policy": {"networkPolicy": {"enabled": False}, "followers": {"replicas": 200}},
}


def documents(variant: str) -> list[dict[str, Any]]:
    return render(CHART, VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("version", ["1.27", "1.36"])
def test_the_chart_is_what_kubernetes_takes(variant: str, version: str) -> None:
    for one in documents(variant):
        kubernetes_validate.validate(one, version, strict=True)


def test_the_chart_has_what_a_fleet_needs() -> None:
    kinds = [(one["kind"], one["metadata"]["name"]) for one in documents("everything")]
    assert sorted(kinds) == [
        ("Deployment", "main-follower"),
        ("Deployment", "main-vllm"),
        ("Deployment", "main-writer"),
        ("NetworkPolicy", "main"),
        ("PodDisruptionBudget", "main-follower"),
        ("PodDisruptionBudget", "main-vllm"),
        ("Service", "main"),
        ("Service", "main-vllm"),
        ("Service", "main-writer"),
    ]
    assert not any(
        kind == "NetworkPolicy" for kind, _ in map(_named, documents("no network policy"))
    )
    assert not any("vllm" in name for _, name in map(_named, documents("as it is")))


def _named(one: dict[str, Any]) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def pods(variant: str) -> dict[str, dict[str, Any]]:
    """The pods of every deployment, by its name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]
        for one in documents(variant)
        if one["kind"] == "Deployment"
    }


def test_services_and_budgets_find_their_pods_and_no_others() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods("everything").items()}
    for one in documents("everything"):
        if one["kind"] not in ("Service", "PodDisruptionBudget"):
            continue
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        chosen = [name for name, own in labels.items() if wanted.items() <= own.items()]
        assert len(chosen) == 1, one["metadata"]["name"]
        if one["kind"] == "Service":
            containers = pods("everything")[chosen[0]]["spec"]["containers"]
            ports = {port["name"] for container in containers for port in container["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports


def test_ours_runs_as_nobody_and_is_ready_when_its_state_is_proven() -> None:
    for name, pod in pods("everything").items():
        ours = [c for c in pod["spec"]["containers"] if c["image"].startswith("weightledger:")]
        (container,) = ours
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz", name
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        security = {**pod["spec"].get("securityContext", {}), **container["securityContext"]}
        assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_what_containers_run_is_what_the_command_takes() -> None:
    """Every subcommand, flag and variable is there."""
    flags = {one.flag for one in settings_of(Settings)}
    variables = {f"WEIGHTLEDGER_{one.name.upper()}" for one in settings_of(Settings)}
    for pod in pods("everything").values():
        for container in pod["spec"]["containers"]:
            if not container["image"].startswith("weightledger:"):
                continue
            command, *rest = container["args"]
            assert command in COMMANDS
            assert {word for word in rest if word.startswith("--")} <= flags
            assert {one["name"] for one in container["env"]} <= variables


def test_the_gate_and_turns_are_those_of_every_replica() -> None:
    """A replica without them would count as one that cannot, or take no turn."""
    said = {
        name: container["args"]
        for name, pod in pods("everything").items()
        for container in pod["spec"]["containers"]
        if container["image"].startswith("weightledger:")
    }
    assert said["main-writer"][-6:] == [
        *("--prepare", "canary", "--prepare-percent", "25", "--prepare-timeout-s", "15")
    ]
    for name in ("main-follower", "main-vllm"):
        assert said[name][-3:] == ["--prepares", "--rolling", "2"]
    plain = pods("as it is").values()
    words = {word for pod in plain for one in pod["spec"]["containers"] for word in one["args"]}
    assert words.isdisjoint({"--prepare", "--prepares", "--rolling"})


@pytest.mark.parametrize(
    "values",
    [
        {"prepare": {"of": "some"}},
        {"prepare": {"percent": 0}},
        {"prepare": {"timeoutS": 0}},
        {"rolling": -1},
        {"followers": {"minAvailable": "most"}},
        {"followers": {"replica": 3}},
        {"prepares": True},
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        render(CHART, values)


def test_the_schema_of_values_is_that_of_what_they_set() -> None:
    """Every value has its schema, and what it bounds is what the setting takes."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Any, known: dict[str, Any], at: str) -> None:
        for key, value in values.items():
            assert key in known["properties"], f"{at}{key}"
            if "properties" in known["properties"][key]:
                compare(value, known["properties"][key], f"{at}{key}.")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
    gate = schema["properties"]["prepare"]["properties"]
    bounds = {
        "prepare_percent": gate["percent"]["maximum"],
        "prepare_timeout_s": gate["timeoutS"]["maximum"],
        "rolling": schema["properties"]["rolling"]["maximum"],
    }
    hints = get_type_hints(Settings, include_extras=True)
    for name, most in bounds.items():
        (hint,) = [
            one for one in (hints[name], *get_args(hints[name])) if hasattr(one, "__metadata__")
        ]
        assert Le(most) in hint.__metadata__, name


def steps() -> list[tuple[str, str]]:
    """The instructions of the image: the word, and what follows it."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_copies_what_is_there_and_ends_as_nobody() -> None:
    said = steps()
    copied = [word for kind, rest in said if kind == "COPY" and not rest.startswith("--")
              for word in shlex.split(rest)[:-1]]  # fmt: skip
    assert {"src", "ledger", "rules", "api", "migrations", "pyproject.toml"} <= set(copied)
    assert [word for word in copied if not (ROOT / word).exists()] == []
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert ignored.isdisjoint(copied)
    last = max(number for number, (kind, _) in enumerate(said) if kind == "FROM")
    assert ("USER", "10001:10001") in said[last:]
    assert said[-2:] == [("ENTRYPOINT", '["weightledger"]'), ("CMD", '["serve"]')]
    environment = dict(
        pair.split("=", 1) for kind, rest in said if kind == "ENV" for pair in shlex.split(rest)
    )
    own = {name for name in environment if name.startswith("WEIGHTLEDGER_")}
    assert own <= {f"WEIGHTLEDGER_{one.name.upper()}" for one in settings_of(Settings)}


@pytest.mark.soak
def test_the_steps_of_the_image_lead_to_a_command_that_runs(tmp_path: Path) -> None:
    """As plain commands in an empty root; what this environment has is not downloaded again."""
    work, here = tmp_path / "src", tmp_path / "opt/weightledger"
    work.mkdir()
    for kind, rest in steps():
        words = shlex.split(rest)
        if kind == "COPY" and not rest.startswith("--"):
            for word in words[:-1]:
                source = ROOT / word
                target = work / word
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True)
                else:
                    shutil.copy(source, target)
        elif kind == "RUN" and "/opt/weightledger" in rest:
            if "index-url" in rest:
                continue  # torch is there
            rest = rest.replace("/opt/weightledger", str(here)).replace(
                "python -m", f"{sys.executable} -m"
            )
            rest = rest.replace("-m venv", "-m venv --system-site-packages")
            rest = rest.replace("pip install", "pip install --no-deps --no-build-isolation")
            environment = {
                **os.environ,
                "PYTHONPATH": str(Path(kubernetes_validate.__file__).parent.parent),
            }
            done = subprocess.run(
                rest, shell=True, cwd=work, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(kubernetes_validate.__file__).parent.parent),
    }
    told = subprocess.run(
        [here / "bin/weightledger", "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0 and "follow" in told.stdout, told.stderr
