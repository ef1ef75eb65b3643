"""What differs between two states: what is read, what is told, what is refused."""

import csv
import io
import json
import math
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.api.test_command import inside
from tests.planned import Planned
from tests.serving import Server, serving
from weightledger import IncrementalUpdateRequest as Request
from weightledger import InvalidRequest, Ledger, Log, NotFound, Plan, Pruned
from weightledger.ledger.debug.diff import diff
from weightledger.ledger.debug.drawn import diff_picture
from weightledger.ledger.debug.measured import Memo
from weightledger.ledger.debug.names import layer_of, module_of
from weightledger.ledger.retention import collect

SVG = "{http://www.w3.org/2000/svg}"


def model() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = {"embed.weight": (40, 8), "layers.0.q.weight": (8, 8), "layers.1.q.weight": (8, 8)}
    state = {name: torch.randn(*size, generator=random) for name, size in sizes.items()}
    return {**state, "layers.1.scale": torch.ones(8).bfloat16(), "steps": torch.tensor([7])}


def auxiliary(log: Log, **tensors: torch.Tensor | None) -> None:
    log.execute(Planned(lambda staged: Plan({"operation": "test"}, {}, tensors)))


@pytest.fixture
def log(database_url: str) -> Iterator[Log]:
    with Ledger.open(database_url) as ledger:
        yield ledger.model("m", base=model())


def test_what_changed_is_told_and_nothing_else(log: Log) -> None:
    log.apply(Request("layers.1.q.weight", 1.0, learning_rate=0.5))
    log.apply(Request("embed.weight", [1.0], learning_rate=1.0, indices=[19]))
    found = log.diff("0", "head")
    assert [one.name for one in found.tensors] == [
        "weights/layers.1.q.weight",
        "weights/embed.weight",
    ]
    assert (found.unchanged, found.total.tensors, found.total.changed) == (3, 5, 65)
    whole, one = (tensor.to_json() for tensor in found.tensors)
    assert (whole["changed"], whole["share"], whole["first_index"]) == (64, 1.0, [0, 0])
    assert whole["largest_change"] == pytest.approx(0.5, abs=1e-6)
    assert whole["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert (one["changed"], one["first_index"], one["effective_rank"]) == (1, [2, 3], 1)
    before, after = log.state("0"), log.state("head")
    for tensor in (whole, one):
        old, new = (side[tensor["name"]].double() for side in (before, after))
        assert tensor["relative_norm"] == pytest.approx(float((new - old).norm() / old.norm()))
        assert tensor["cosine"] == pytest.approx(float((new * old).sum() / new.norm() / old.norm()))
    assert [group.name for group in found.layers] == ["layers.1", "embed"]
    assert [group.name for group in found.modules] == ["layers.1.q", "embed"]
    layer = found.layers[0].to_json()
    assert (layer["tensors"], layer["tensors_changed"], layer["elements"]) == (2, 1, 72)
    json.dumps(found.to_json(), allow_nan=False)


def test_the_other_way_round(log: Log) -> None:
    log.apply(Request("steps", [9], update_type="replace"))
    there, back = log.diff("0", "head").tensors[0], log.diff("head", "0").tensors[0]
    assert (there.numbers.largest, back.numbers.largest) == (2, 2)
    assert (there.norm_before, back.norm_before) == (7, 9)


def test_states_on_different_branches(log: Log) -> None:
    log.apply(Request("layers.0.q.weight", 1.0))
    log.rollback("0")
    log.apply(Request("layers.1.q.weight", 1.0))
    found = log.diff("1", "head")
    assert {one.name for one in found.tensors} == {
        "weights/layers.0.q.weight",
        "weights/layers.1.q.weight",
    }
    log.rollback("1")
    same = log.diff("1", "head")
    assert (same.tensors, same.unchanged, same.total.relative) == ([], 5, None)


def test_equal_tensors_are_not_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.apply(Request("layers.0.q.weight", 1.0))
    read: list[str] = []
    states = type(log.history._states)
    load = states.anchored

    def anchored(self, node, state, name, **options):
        read.append(name)
        return load(self, node, state, name, **options)

    monkeypatch.setattr(states, "anchored", anchored)
    diff(log.history, "0", "head")
    assert read == ["weights/layers.0.q.weight"]
    memo, read[:] = Memo(), []
    first = diff(log.history, "0", "head", memo=memo)
    again = diff(log.history, "0", "head", memo=memo)
    assert read == ["weights/layers.0.q.weight"]
    assert first.to_json() == again.to_json()


def test_adapters_and_rule_states_come_and_go(log: Log) -> None:
    auxiliary(log, **{"rule/layers.0.q.weight/main/trace": torch.zeros(4)})
    auxiliary(log, **{"rule/layers.0.q.weight/main/trace": torch.full((4,), 2.0)})
    auxiliary(log, **{"adapter/x/layers.0.q.lora_A.weight": torch.ones(2, 8)})
    auxiliary(log, **{"adapter/x/layers.0.q.lora_A.weight": torch.ones(3, 8)})
    kinds = [
        {one.name: one.kind for one in log.diff(*pair).tensors}
        for pair in (("0", "1"), ("1", "2"), ("2", "3"), ("3", "4"), ("4", "0"))
    ]
    trace, adapter = "rule/layers.0.q.weight/main/trace", "adapter/x/layers.0.q.lora_A.weight"
    assert kinds == [
        {trace: "added"},
        {trace: "changed"},
        {adapter: "added"},
        {adapter: "replaced"},
        {trace: "removed", adapter: "removed"},
    ]
    added = log.diff("2", "3").tensors[0].to_json()
    assert (added["norm_before"], added["norm_after"], added["cosine"]) == (None, 4.0, None)
    assert added["changed"] == 16
    assert [group.name for group in log.diff("4", "0").layers] == [
        "adapter/x/layers.0",
        "rule/layers.0.q.weight",
    ]
    log.rollback("1")
    assert {one.kind for one in log.diff("4", "head").tensors} == {"changed", "removed"}


def test_what_is_broken_comes_first(log: Log) -> None:
    log.apply(Request("layers.0.q.weight", 100.0, learning_rate=1.0))
    broken = log.state()["embed.weight"]
    broken[3, 3], broken[3, 4] = math.nan, math.inf
    log.record({**log.state(), "embed.weight": broken})
    found = log.diff("0", "head").to_json()
    assert found["by_tensor"][0]["name"] == "embed.weight"
    assert (found["by_tensor"][0]["became_not_finite"], found["layers"][0]["name"]) == (2, "embed")
    assert found["became_not_finite"] == 2
    assert found["by_tensor"][0]["first_index"] == [3, 3]
    json.dumps(found, allow_nan=False)


def test_layers_and_modules_by_name() -> None:
    for full, layer, module in (
        ("weights/encoder.layer.3.attention.query.weight", "encoder.layer.3", None),
        ("weights/embeddings.word.weight", "embeddings", "embeddings.word"),
        ("weights/0.weight", "0", "0"),
        ("weights/weight", "weight", "weight"),
        ("adapter/x/base.layers.3.q.lora_A.weight", "adapter/x/base.layers.3", None),
        ("rule/0.weight/main/trace", "rule/0.weight", "rule/0.weight"),
    ):
        assert layer_of(full) == layer
        expected = module or full.removeprefix("weights/").rpartition(".")[0]
        assert module_of(full) == expected


def test_memory_is_one_tensor_of_each_state(tmp_path: Path) -> None:
    """Four tensors of 17 MiB that all changed, and small ones that are held together."""
    size = 17 << 20
    state = {f"layers.{n}.weight": torch.zeros(size // 4) for n in range(4)}
    state |= {f"small.{n}": torch.zeros(100) for n in range(9)}
    with Ledger.open(f"sqlite:///{tmp_path}/l.db") as ledger:
        log = ledger.model("m", base=state)
        log.record({name: tensor + 1 for name, tensor in state.items()})
        store, position = log.history, "0"
        held: list[int] = []
        tensors = type(store).tensors

        def counted(self, node, expected, names=None, *, known=None):
            found = tensors(self, node, expected, names, known=known)
            held.append(sum(tensor.nbytes for tensor in found.values()))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(store), "tensors", counted)
            tracemalloc.start()
            found = diff(store, position, "head", ranks="none")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert len(found.tensors) == 13
        assert held == [size, size] * 4 + [3600, 3600]
        assert peak < 3 * size  # what numpy and Python hold; torch's memory is counted above


# Each update of a range


def test_each_update_of_a_range(log: Log) -> None:
    log.apply(Request("layers.0.q.weight", 1.0))
    log.create_version("between")
    log.apply(Request("layers.1.q.weight", 1.0))
    log.rollback("head~1")
    log.apply(Request("layers.0.q.weight", 2.0))
    auxiliary(log, **{"adapter/x/a": torch.ones(3)})
    found = log.each("0", "head")
    assert [one.event.seq for one in found.columns] == [1, 6, 7]
    cells = dict(found.cells)
    assert set(cells) == {"layers.0", "adapter/x/a"}
    assert cells["adapter/x/a"] == [None, None, math.inf]
    for column, (one, other) in enumerate((("0", "1"), ("1", "6"))):
        (alone,) = log.diff(one, other).layers
        assert cells["layers.0"][column] == pytest.approx(alone.relative)
    assert cells["layers.0"][2] is None
    json.dumps(found.to_json(), allow_nan=False)


def test_many_updates_share_columns(log: Log) -> None:
    for _ in range(7):
        log.apply(Request("layers.0.q.weight", 1.0))
    found = log.each("0", "head", columns=3)
    assert [(one.event.seq, one.updates) for one in found.columns] == [(3, 3), (6, 3), (7, 1)]
    for column, pair in enumerate((("0", "3"), ("3", "6"), ("6", "7"))):
        assert found.cells["layers.0"][column] == pytest.approx(log.diff(*pair).layers[0].relative)


def test_a_range_goes_down_one_branch(log: Log) -> None:
    log.apply(Request("layers.0.q.weight", 1.0))
    log.rollback("0")
    log.apply(Request("layers.1.q.weight", 1.0))
    with pytest.raises(InvalidRequest, match="seq:3 is later than seq:0: swap them"):
        log.each("3", "0")
    with pytest.raises(InvalidRequest, match=r"seq:3 did not come of seq:1.*seq:0: begin there"):
        log.each("1", "3")
    with pytest.raises(InvalidRequest, match="columns must be 1 to 200, got 0"):
        log.each("0", "3", columns=0)
    assert log.each("head", "head").cells == {}


# Bad input


def test_positions_that_are_not_there(log: Log) -> None:
    for position in ("v7", "seq:99", "nonsense", "head~9"):
        with pytest.raises(NotFound):
            log.diff(position)
        with pytest.raises(NotFound):
            log.each("0", position)


def test_a_pruned_position_says_so(sqlite_url: str) -> None:
    random = torch.Generator().manual_seed(1)
    large = {"w": torch.zeros(200_000)}
    with Ledger.open(sqlite_url) as ledger:
        log = ledger.model("m", base=large, alpha=1.5)
        log.create_version("start")
        for _ in range(6):
            log.record({"w": torch.randn(200_000, generator=random)})
        hours_later = time.time_ns() // 1000 + 7_200_000_000
        collect(log.history, dry_run=False, now_us=lambda: hours_later)
        for ask in (log.diff, log.each):
            with pytest.raises(Pruned):
                ask("seq:3", "head")


# Pictures


def test_pictures_are_for_everyone(log: Log) -> None:
    """Well-formed, with words for what is to be seen, and no name does anything."""
    nasty = "layers.0.<script>alert(1)</script>&\"'\N{RIGHT-TO-LEFT OVERRIDE}"
    auxiliary(log, **{f"adapter/{nasty}/a": torch.ones(3)})
    log.apply(Request("layers.0.q.weight", 1.0))
    for found in (log.diff("0"), log.each("0")):
        picture = diff_picture(found.to_json())
        tree = ElementTree.fromstring(picture)
        assert tree.tag == f"{SVG}svg"
        assert tree.get("role") == "img"
        assert tree[0].tag == f"{SVG}title"
        assert tree[1].tag == f"{SVG}desc"
        assert {one.tag.removeprefix(SVG) for one in tree.iter()} <= {
            *("svg", "title", "desc", "g", "rect", "text", "circle", "line", "polyline")
        }
        words = [one.text for one in tree.iter(f"{SVG}title")]
        assert any(word.startswith("layers.0") for word in words)
    empty = ElementTree.fromstring(diff_picture(log.diff("head").to_json()))
    assert "nothing changed" in [one.text for one in empty.iter(f"{SVG}text")]


# The command and REST


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("diff") / "data") as running:
        with running.client() as http:
            for value in (0.5, 0.25):
                body = {"parameter_name": "2.bias", "update_data": value, "learning_rate": 0.01}
                assert http.post("/v1/models/incremental_update", json=body).status_code == 200
        yield running


def test_the_faces_say_the_same(server: Server, tmp_path: Path) -> None:
    with server.client() as http:
        reply = http.get("/v1/models/diff", params={"from": "v0"})
        assert reply.status_code == 200
        over_rest = reply.json()
        table = http.get("/v1/models/diff", params={"from": "v0", "format": "csv"})
        picture = http.get("/v1/models/diff", params={"from": "v0", "format": "svg"})
        by_update = http.get("/v1/models/diff", params={"from": "v0", "each": "true"}).json()
    at = ("--data-dir", str(server.folder))
    for where in (at, ("--url", server.url)):
        status, out, err = inside("diff", "v0", *where, "--json")
        assert status == 0, err
        assert json.loads(out) == over_rest
    assert [column["updates"] for column in by_update["columns"]] == [1, 1]
    (row,) = csv.DictReader(io.StringIO(table.text))
    assert (row["name"], row["changed"], row["shape"]) == ("2.bias", "10", "10")
    assert picture.headers["content-type"].startswith("image/svg+xml")
    file = tmp_path / "d.svg"
    status, out, err = inside("diff", "v0", "head", *at, "--svg", str(file))
    assert status == 0, err
    assert "1 of 4 tensors differ, 10 of" in out
    assert "2.bias" in out
    assert file.read_text() == picture.text
    status, out, _ = inside("diff", "v0", *at, "--each", "--by", "layer")
    assert status == 0
    assert "2 columns, 1 layers touched" in out
    status, out, _ = inside("diff", "v0", *at, "--csv", "--by", "module")
    assert out.splitlines()[0].startswith("name,tensors,")
    assert inside("diff", "head", *at)[1].endswith("are the same state\n")


def test_refusals_of_the_faces(server: Server, tmp_path: Path) -> None:
    with server.client() as http:
        for query, status, param in (
            ({}, 400, "from"),
            ({"from": "v9"}, 404, None),
            ({"from": "head", "to": "v0", "each": "true"}, 400, "from"),
            ({"from": "v0", "format": "pdf"}, 400, "format"),
            ({"before": "v0"}, 400, "before"),
        ):
            reply = http.get("/v1/models/diff", params=query)
            assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), query
    at = ("--data-dir", str(server.folder))
    assert inside("diff", "v9", *at)[0] == 1
    assert inside("diff", "v0", *at, "--json", "--csv")[0] == 2
    missing = tmp_path / "no" / "d.svg"
    status, _, err = inside("diff", "v0", *at, "--svg", str(missing))
    assert status == 1
    assert "there is no folder" in err
