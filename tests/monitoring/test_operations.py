"""The files in deploy/ load, and ask for what a server really tells."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from torch import nn

from tests import patient
from tests.in_process import listening
from tests.waiting import until
from weightledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yaml"


def yaml(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file.read_text())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What /metrics says of a server that was asked, updated, rolled back and measured."""
    folder = tmp_path_factory.mktemp("operated")
    config = DynamicUpdateConfig(backup_dir=folder, drift_metrics=("error",))
    made = DynamicModelManager(
        TorchEngine(nn.Linear(2, 2)), "m", config=config, evaluator=lambda _: {"accuracy": 0.75}
    )
    with (
        contextlib.closing(made),
        listening(made) as url,
        patient.Client(base_url=url) as http,
    ):
        for inputs in ([[1.0, 2.0]] * 3, [[1.0]]):
            http.post("/invocations", json={"inputs": inputs})
        update = {"parameter_name": "bias", "update_data": 1.0}
        assert http.post("/v1/models/incremental_update", json=update).json()["success"]
        assert http.post("/v1/models/rollback", json={"version_id": "seq:0"}).json()["success"]
        for value in (0.0, 1.0):
            drifting = [
                {"metric": "error", "value": value, "id": f"{value} {n}"} for n in range(250)
            ]
            http.post("/v1/models/metrics", json={"samples": drifting})

        def page() -> str:
            text: str = http.get("/metrics").text
            return text

        until(
            lambda: (
                'weightledger_inferences_total{model_name="m",outcome="failed"} 1.0' in page()
                and "weightledger_score{" in page()
                and "weightledger_drifts_total{" in page()
            ),
            "requests are not counted",
        )
        yield page()


def value(told: str, series: str) -> float:
    (line,) = re.findall(rf"^{re.escape(series)} (\S+)$", told, re.M)
    return float(line)


def test_requests_are_counted_with_their_latency_and_outcome(told: str) -> None:
    assert value(told, 'weightledger_inferences_total{model_name="m",outcome="ok"}') == 1
    assert value(told, 'weightledger_inferences_total{model_name="m",outcome="failed"}') == 1
    assert value(told, 'weightledger_inference_duration_seconds_count{model_name="m"}') == 1
    assert value(told, 'weightledger_inference_queue_duration_seconds_count{model_name="m"}') == 2
    score = 'weightledger_score{metric="accuracy",model_name="m",source="evaluator"}'
    assert value(told, score) == 0.75
    assert value(told, 'weightledger_drifts_total{metric="error",model_name="m"}') == 1
    assert value(told, 'weightledger_lost_samples_total{model_name="m"}') == 0
    assert value(told, 'weightledger_metrics_failing{model_name="m"}') == 0


def test_no_label_is_an_id(told: str) -> None:
    labels = set(re.findall(r'(\w+)="', told))
    assert labels <= {
        *("model_name", "outcome", "trigger", "route", "method", "status", "le", "queue"),
        *("code", "metric", "source", "version", "database"),
    }


def expressions() -> Iterator[tuple[str, str]]:
    for rule in yaml(ALERTS)["groups"][0]["rules"]:
        yield f"alert {rule['alert']}", rule["expr"]
    dashboard = json.loads((DEPLOY / "grafana/weightledger.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    for note in dashboard["annotations"]["list"]:
        yield f"annotation {note['name']}", note["expr"]
    for one in dashboard["templating"]["list"]:
        if one["type"] == "query":
            yield f"variable {one['name']}", one["definition"]
    for metric in yaml(DEPLOY / "argo/analysis-template.yaml")["spec"]["metrics"]:
        yield f"analysis {metric['name']}", metric["provider"]["prometheus"]["query"]


EXPRESSIONS = dict(expressions())


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression_asks_for_what_there_is(told: str, name: str) -> None:
    families = dict(re.findall(r"^# TYPE (\S+) (\S+)$", told, re.M))
    known = {"up"} | {family for family, kind in families.items() if kind != "histogram"}
    for family, kind in families.items():
        if kind == "histogram":
            known |= {f"{family}_{part}" for part in ("bucket", "count", "sum")}
    asked = set(re.findall(r"\bweightledger_\w+", EXPRESSIONS[name]))
    assert asked or "up{" in EXPRESSIONS[name]
    assert asked <= known, asked - known


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads((DEPLOY / "grafana/weightledger.json").read_text())
    assert {"uid", "title", "schemaVersion", "panels", "templating"} <= dashboard.keys()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert all(target["expr"] and target["refId"] for target in panel["targets"])


def test_the_analysis_waits_where_there_is_no_traffic() -> None:
    template = yaml(DEPLOY / "argo/analysis-template.yaml")
    assert (template["apiVersion"], template["kind"]) == (
        "argoproj.io/v1alpha1",
        "AnalysisTemplate",
    )
    args = {one["name"] for one in template["spec"]["args"]}
    for metric in template["spec"]["metrics"]:
        query = metric["provider"]["prometheus"]["query"]
        assert set(re.findall(r"{{args\.([\w-]+)}}", query)) <= args
        for condition in ("successCondition", "failureCondition"):
            assert metric[condition].startswith("len(result) > 0")
        assert {"interval", "count", "failureLimit", "consecutiveErrorLimit"} <= metric.keys()


# `make promtool` takes Debian's into the environment.
PROMTOOL = shutil.which("promtool") or shutil.which(
    "promtool", path=str(Path(sys.executable).parent)
)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here: make promtool")
def test_promtool_takes_the_rules_and_they_fire_when_they_should() -> None:
    for words in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        ran = subprocess.run(
            [str(PROMTOOL), *words], cwd=ALERTS.parent, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
