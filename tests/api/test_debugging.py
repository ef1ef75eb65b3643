"""What-ifs and searches over REST and by command, and states written to files."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from tests import patient
from tests.api.test_command import as_json, inside, ok
from tests.in_process import listening
from tests.serving import Server
from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    Ledger,
    TorchEngine,
)
from weightledger.ledger.retention import collect


def update(http: httpx2.Client, value: float, index: int) -> str:
    body = {"parameter_name": "2.bias", "update_data": [value], "indices": [index]}
    reply = http.post("/v1/models/incremental_update", json={**body, "learning_rate": 1.0})
    return str(reply.json()["data"]["update_id"])


def bias(file: Path) -> list[float]:
    return [float(one) for one in load_file(file)["2.bias"]]


def test_a_what_if_is_told_saved_and_adopted_by_rest_and_command(
    server: Server, http: httpx2.Client, tmp_path: Path
) -> None:
    first = update(http, 0.001, 3)
    update(http, 0.002, 4)
    for mode in ("mechanical", "causal"):
        asked = {"to": "head", "without": [first], "mode": mode}
        told = http.post("/v1/models/replay", json=asked).json()
        assert (told["object"], told["mode"], told["without"]) == ("what_if", mode, [first])
        assert [one["name"] for one in told["changed"]] == ["2.bias"]
        words = ("replay", "--without", first, "--mode", mode)
        by_command = as_json(*words, "--url", server.url)
        assert by_command["digest"] == told["digest"]
        assert as_json(*words, "--data-dir", str(server.folder))["digest"] == told["digest"]
        file = tmp_path / f"{mode}.safetensors"
        named = f"what-if ({mode}): head without {first}"
        for source in (("--url", server.url), ("--data-dir", str(server.folder))):
            saved = as_json(*words, "-o", str(file), *source)
            assert (saved["digest"], saved["what_if"]) == (told["digest"], named)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["weight_ledger.digest"] == told["digest"]
        assert metadata["weight_ledger.what_if"] == named
    words = ("rollback", "--to", "head", "--without", first)
    dry = as_json(*words, "--dry-run", "--url", server.url)
    assert dry["digest"] == told["digest"]
    done = as_json(*words, "--mode", "causal", "-m", "it was wrong", "--url", server.url)
    assert done["success"] is True
    head = http.get(f"/v1/models/updates/{done['update_id']}").json()
    assert (head["state_after"], head["reason"]) == (told["digest"], "it was wrong")
    assert (head["facts"]["operation"], head["facts"]["mode"]) == ("what_if", "causal")
    # The adopted state came ready: it cannot be worked out again, and says so.
    refused = http.post("/v1/models/replay", json={"without": [first], "mode": "causal"})
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "what_if_refused"
    assert done["update_id"] in refused.json()["error"]["message"]


def test_a_position_is_replayed_over_rest(http: httpx2.Client) -> None:
    changed = update(http, 0.001, 5)
    named = http.post("/v1/models/create_version", json={"description": "to replay"}).json()
    version = named["data"]["version_id"]
    told = http.post("/v1/models/replay", json={"to": version}).json()
    assert (told["object"], told["version"]) == ("replay", version)
    assert told["seq"] == http.get(f"/v1/models/updates/{changed}").json()["seq"]
    for body, status in (({"to": "seq:99999"}, 404), ({"without": ["head"], "mode": "x"}, 400)):
        assert http.post("/v1/models/replay", json=body).status_code == status


def test_a_search_is_gone_through_over_rest(http: httpx2.Client) -> None:
    good = update(http, 0.001, 0)
    poison = update(http, 0.5, 7)
    bad = update(http, 0.001, 1)
    body: dict[str, Any] = {"good": good, "bad": bad, "verdicts": []}
    found = http.post("/v1/models/bisect", json=body).json()
    while not found["done"]:
        seq = found["next"]["seq"]
        weights = http.get(f"/v1/models/versions/seq:{seq}/weights").content
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        start = 8 + length + header["2.bias"]["data_offsets"][0]
        value = torch.frombuffer(bytearray(weights[start : start + 40]), dtype=torch.float32)[7]
        verdict = "good" if value < 0.3 else "bad"
        body["verdicts"].append({"position": f"seq:{seq}", "verdict": verdict})
        found = http.post("/v1/models/bisect", json=body).json()
    assert found["first_bad"]["id"] == poison
    assert found["undo"][0].startswith(f"weightledger rollback --to head --without {poison}")
    noisy = {**body, "noisy": 0.1, "verdicts": []}
    assert http.post("/v1/models/bisect", json=noisy).json()["probability"] == pytest.approx(0.5)
    swapped = http.post("/v1/models/bisect", json={"good": bad, "bad": good})
    assert swapped.status_code == 400
    assert "came after the bad one" in swapped.json()["error"]["message"]


def test_a_search_goes_on_where_it_is_sent_back(http: httpx2.Client) -> None:
    good = update(http, 0.001, 0)
    poison = update(http, 0.5, 7)
    bad = [update(http, 0.001, 1) for _ in range(4)][-1]
    asked: dict[str, Any] = {"good": good, "bad": bad, "probes": 3}
    begun = http.post("/v1/models/bisect", json=asked).json()
    assert len(begun["probes"]) == 3
    assert begun["next"]["seq"] in begun["probes"]
    search = begun["search"]
    while True:
        asked = {"search": search, "verdicts": []}
        told = http.post("/v1/models/bisect", json=asked).json()
        if told["done"]:
            break
        at = int(told["next"]["id"].split("_")[1])
        verdict = "good" if at < int(poison.split("_")[1]) else "bad"
        asked["verdicts"] = [{"verdict": verdict}]  # on the state to be judged next
        search = http.post("/v1/models/bisect", json=asked).json()["search"]
    assert told["first_bad"]["id"] == poison
    picture = http.post("/v1/models/bisect", json={"search": search, "format": "svg"})
    assert picture.headers["content-type"].startswith("image/svg+xml")
    assert picture.text.count("<circle") == len(search["judged"])
    for wrong, param in (
        ({"search": search, "good": good}, "good"),
        ({"search": {**search, "judged": [{"seq": 1, "verdict": "fine"}]}}, "search.judged.0"),
        ({"search": search, "judge": 1}, "metric"),
        ({"good": good, "verdicts": [{"verdict": "bad", "position": "nowhere"}]}, None),
    ):
        refused = http.post("/v1/models/bisect", json=wrong)
        assert refused.status_code in (400, 404)
        if param is not None:
            assert refused.json()["error"]["param"].startswith(param)
    other = {**search, "origin": "0" * 64}
    refused = http.post("/v1/models/bisect", json={"search": other})
    assert (refused.status_code, "another ledger" in refused.text) == (400, True)


def test_the_servers_own_evaluator_judges_beside_what_it_serves(
    server: Server, http: httpx2.Client, tmp_path: Path
) -> None:
    good = update(http, 0.001, 2)
    body = {"parameter_name": "2.bias", "update_data": [4.0], "indices": [5], "learning_rate": 1.0}
    poison = http.post("/v1/models/incremental_update", json=body).json()["data"]["update_id"]
    bad = update(http, 0.001, 2)
    live = http.get("/v1/models/status").json()
    asked = {"good": good, "bad": bad, "metric": "accuracy", "drop": 0.01, "judge": 1}
    told = http.post("/v1/models/bisect", json=asked).json()
    assert [one["verdict"] for one in told["search"]["judged"]] == ["good"]  # what others are to
    told = http.post("/v1/models/bisect", json={"search": told["search"], "judge": 20}).json()
    assert told["first_bad"]["id"] == poison
    assert told["evaluations"] == len(told["search"]["judged"])
    assert http.get("/v1/models/status").json() == live
    # By command the same, a state at a time.
    at = ("--url", server.url, "--state", str(tmp_path / "search"))
    ok("bisect", "start", "--good", good, "--bad", bad, *at)
    status, out, err = inside(
        "bisect", "run", "--evaluator", "built-in", "--drop", "0.01", "--json", *at
    )
    assert (status, json.loads(out)["first_bad"]["id"]) == (0, poison), err
    assert "(accuracy 0." in err
    words = ("--evaluator", "built-in", "--drop", "0.01", "--jobs", "2")
    status, _, err = inside("bisect", "run", *words, *at)
    assert (status, "one state at a time" in err) == (2, True)
    assert http.post("/v1/models/rollback", json={"version_id": good}).is_success


def test_a_program_of_ones_own_judges_the_states_of_a_server(
    server: Server, http: httpx2.Client, tmp_path: Path
) -> None:
    good = update(http, 0.001, 3)
    for _ in range(6):
        update(http, 0.001, 3)
    poison = update(http, 0.5, 8)
    bad = [update(http, 0.001, 3) for _ in range(2)][-1]
    limit = float(dict(enumerate(state_bias(http, good)))[8]) + 0.25
    judge = tmp_path / "judge.py"
    judge.write_text(
        f"#!{sys.executable}\nimport os, sys\nfrom safetensors import safe_open\n"
        "with safe_open(sys.argv[-1], 'pt') as state:\n"
        "    assert state.metadata()['weight_ledger.seq'] == os.environ['WEIGHTLEDGER_SEQ']\n"
        f"    sys.exit(int(state.get_tensor('2.bias')[8] > {limit}))\n"
    )
    judge.chmod(0o755)
    at = ("--url", server.url, "--state", str(tmp_path / "search"))
    assert as_json("bisect", "start", "--good", good, *at)["bad"] is None
    assert as_json("bisect", "bad", bad, *at)["steps"] == 9
    first = as_json("bisect", "good", *at)  # the state to be judged next
    assert first["verdicts"] == 1
    status, out, err = inside("bisect", "run", "--json", *at, "--", str(judge))
    assert (status, json.loads(out)["first_bad"]["id"]) == (0, poison), err
    picture = tmp_path / "search.svg"
    shown = as_json("bisect", "visualize", "--svg", str(picture), *at)
    assert shown["first_bad"]["id"] == poison
    assert "</svg>" in picture.read_text()
    assert f"bisect bad seq:{shown['first_bad']['seq']}" in ok("bisect", "log", *at)
    assert as_json("bisect", "reset", *at) == {"ended": True}
    assert not list(tmp_path.glob("search"))


@pytest.mark.parametrize("by", ["server", "folder"])
def test_a_metric_may_be_infinite(
    server: Server, http: httpx2.Client, tmp_path: Path, by: str
) -> None:
    """As a loss is that overflows; JSON has no infinity."""
    good, poison, bad = (update(http, 0.001, 3) for _ in range(3))
    judge = tmp_path / "judge.py"
    judge.write_text(
        f"#!{sys.executable}\nimport json, os\n"
        f"bad = int(os.environ['WEIGHTLEDGER_SEQ']) >= {seq_of(http, poison)}\n"
        "print(json.dumps({'loss': float('inf') if bad else 0.5}))\n"
    )
    judge.chmod(0o755)
    where = ("--url", server.url) if by == "server" else ("--data-dir", str(server.folder))
    at = (*where, "--state", str(tmp_path / "search"))
    ok("bisect", "start", "--good", good, "--bad", bad, *at)
    words = ("--metric", "loss", "--lower-is-better", "--json", *at, "--", str(judge))
    status, out, err = inside("bisect", "run", *words)
    assert (status, "is bad (loss inf)" in err) == (0, True), err
    assert json.loads(out)["first_bad"]["id"] == poison
    search = json.loads((tmp_path / "search").read_text(), parse_constant=pytest.fail)
    reply = http.post("/v1/models/bisect", json={"search": search}).json()
    assert reply["search"] == search
    assert "inf" in {one["score"] for one in search["judged"]}
    assert ok("bisect", "visualize", "--svg", str(tmp_path / "search.svg"), *at)


def seq_of(http: httpx2.Client, name: str) -> int:
    return int(http.get(f"/v1/models/updates/{name}").json()["seq"])


def state_bias(http: httpx2.Client, position: str) -> list[float]:
    weights = http.get(f"/v1/models/versions/{position}/weights").content
    return [float(one) for one in load(weights)["2.bias"]]


def test_the_built_in_evaluator_judges(server: Server, http: httpx2.Client, tmp_path: Path) -> None:
    """In this process, and in processes of its own."""
    at = ("--data-dir", str(server.folder), "--state", str(tmp_path / "search"))
    good = update(http, 0.001, 2)
    body = {"parameter_name": "2.bias", "update_data": [4.0], "indices": [5]}
    poison = http.post("/v1/models/incremental_update", json={**body, "learning_rate": 1.0}).json()
    name = poison["data"]["update_id"]
    if not poison["success"]:  # the server's own guard is as watchful: slip it past in two steps
        pytest.fail(str(poison))
    update(http, 0.001, 2)
    for jobs in ("1", "2"):
        ok("bisect", "start", "--good", good, "--bad", "head", *at)
        status, out, err = inside(
            *("bisect", "run", "--evaluator", "built-in", "--drop", "0.01", "--jobs", jobs),
            *("--json", *at),
        )
        assert status == 0, err
        found = json.loads(out)
        assert found["first_bad"]["id"] == name
        ok("bisect", "reset", *at)


def test_several_states_are_written_on_one_way(
    server: Server, http: httpx2.Client, tmp_path: Path
) -> None:
    at = ("--data-dir", str(server.folder))
    out = tmp_path / "states"
    one, other = update(http, 0.001, 8), update(http, 0.001, 8)
    told = as_json("replay", "--to", "v0", "--to", one, "--to", other, "-o", str(out), *at)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"seq-{facts['seq']}.safetensors" for facts in told
    )
    assert len(told) == 3
    for facts in told:
        with safe_open(facts["file"], "pt") as opened:
            assert opened.metadata()["weight_ledger.digest"] == facts["digest"]


def test_a_place_that_cannot_be_written_is_told_and_leaves_nothing(
    server: Server, tmp_path: Path
) -> None:
    at = ("--data-dir", str(server.folder))
    for words in (
        ("replay", "-o", str(tmp_path / "no" / "file")),
        ("replay", "--to", "v0", "--to", "head", "-o", str(tmp_path / "no" / "folder")),
    ):
        status, _, err = inside(*words, *at)
        assert (status, "cannot write" in err) == (1, True)
    status, _, err = inside("replay", *at)
    assert (status, "-o FILE" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (("replay", "--to", "v0", "-o", "out.safetensors"), "out.safetensors"),
        (("replay", "--to", "v0", "--to", "head", "-o", "states"), "states/seq-0.safetensors"),
        (("diff", "v0", "v0", "--svg", "picture.svg"), "picture.svg"),
    ],
    ids=["file", "folder", "picture"],
)
def test_where_the_disk_is_full_nothing_has_the_files_name(
    server: Server, tmp_path: Path, words: tuple[str, ...], there: str
) -> None:
    """The kernel takes 100 bytes a file; what was written of it goes again."""
    ran = subprocess.run(
        [sys.executable, "-m", "weightledger", *words, "--data-dir", str(server.folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert ran.returncode == 1, ran.stderr
    assert "cannot write" in ran.stderr
    assert there in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_ends_that_gc_dropped_are_refused_and_states_behind_a_server_are_passed_over(
    tmp_path: Path,
) -> None:
    random = torch.Generator().manual_seed(1)
    config = DynamicUpdateConfig(backup_dir=tmp_path / "data", snapshot_alpha=1.5)
    manager = DynamicModelManager(TorchEngine(torch.nn.Linear(400, 500)), "m", config=config)
    log = manager.log
    log.create_version("start")
    for _ in range(6):
        values = torch.randn(500, 400, generator=random)
        log.apply(IncrementalUpdateRequest("weight", values, update_type="replace"))
    hours_later = time.time_ns() // 1000 + 7_200_000_000
    collect(log.history, dry_run=False, now_us=lambda: hours_later)
    dropped = [seq for seq in range(2, 8) if not log.history.ways.restorable(seq)]
    assert dropped
    with (
        contextlib.closing(manager),
        listening(manager) as url,
        patient.Client(base_url=url) as http,
    ):
        ends = {"good": "v0", "bad": f"seq:{dropped[0]}"}
        refused = http.post("/v1/models/bisect", json=ends)
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "pruned")
        at = ("--url", url, "--state", str(tmp_path / "search"))
        ok("bisect", "start", "--good", "v0", "--bad", "head", *at)
        judge = f"import os, sys; sys.exit(int(int(os.environ['WEIGHTLEDGER_SEQ']) > {dropped[0]}))"
        words = ("--json", *at, "--", sys.executable, "-c", judge)
        status, out, err = inside("bisect", "run", *words)
        told = json.loads(out)
        assert (status, told["first_bad"], told["done"]) == (1, None, True), err
        assert "pruned" in err
        assert told["suspects"] > 1


def test_a_hugging_face_folder_is_loaded_by_its_library(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.text_models import save_llama

    served = save_llama(tmp_path / "served")
    model = AutoModelForCausalLM.from_pretrained(served)
    data = tmp_path / "data"
    data.mkdir()
    with Ledger.open(f"sqlite:///{data}/ledger.db") as ledger:
        log = ledger.model("llama", base=model)
        name = next(name for name in log.specs if name.endswith("q_proj.weight"))
        log.apply(IncrementalUpdateRequest(name, 0.5, learning_rate=0.1))
        expected = log.state()[name]
    out = tmp_path / "exported"
    words = ("replay", "--hugging-face", str(served), "-o", str(out), "--data-dir", str(data))
    assert as_json(*words)["seq"] == 1
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.state_dict()[name], expected)
    assert AutoTokenizer.from_pretrained(out)("weights")["input_ids"]
    status, _, err = inside(*words)
    assert (status, "exists already" in err) == (2, True)
