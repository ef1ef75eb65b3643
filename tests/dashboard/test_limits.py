"""Pages of what is very many, very long or very hostile: whole, escaped, and no larger for it."""

import contextlib
import re
from collections.abc import Iterator
from types import SimpleNamespace

import httpx2
import pytest
import torch

from tests import patient
from tests.dashboard.test_pages import Links
from tests.in_process import listening
from tests.test_history_length import counted
from weightledger import DynamicModelManager, IncrementalUpdateRequest, Ledger
from weightledger.api.dashboard import facts
from weightledger.api.server.settings import Settings
from weightledger.ledger.store.replica_rows import ReplicaStanding, Said

LAYERS = 10_000
NASTY = "<script>document.title='owned'</script>\u202e\x1b]0;owned\x07"
MODEL = "m <script>document.title='owned'</script>'\"&"  # what a model may be called
NAMED = "<script>document</script>\u202e'\"&"  # what a tensor may be called
LONG = "x" * 10_000
PAGES = (
    *("/", "/ui/timeline", "/ui/timeline?flat=true", "/ui/events/seq:1", "/ui/events/seq:2"),
    "/ui/compare?from=seq:0&to=seq:1&each=true",
    *("/ui/parameters", "/ui/versions", "/ui/metrics", "/ui/trials"),
    *("/ui/learning", "/ui/audit", "/ui/keys", "/ui/fleet"),
)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamicModelManager]:
    """A model of ten thousand layers, in a database that has another one."""
    folder = tmp_path_factory.mktemp("limits")
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        ledger.model("the other one", base={"w": torch.zeros(2)}).create_version("elsewhere")
    model = torch.nn.Sequential(
        *(torch.nn.Linear(1, 1, bias=False) for _ in range(LAYERS)),
    )
    model.register_parameter(NAMED, torch.nn.Parameter(torch.zeros(3)))
    model.register_parameter(LONG, torch.nn.Parameter(torch.zeros(3)))
    config = Settings(data_dir=folder).update_config()
    with contextlib.closing(DynamicModelManager(model, MODEL, config=config)) as running:
        yield running


@pytest.fixture(scope="module")
def http(manager: DynamicModelManager) -> Iterator[httpx2.Client]:
    with listening(manager) as url, patient.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def touched(manager: DynamicModelManager, http: httpx2.Client) -> httpx2.Client:
    """The same, once every layer was changed by one event, and by hostile people."""
    for path in PAGES[:3]:
        assert http.get(path).status_code == 200
    log = manager.log
    state = {name: tensor + 1.0 for name, tensor in log.state().items()}
    log.record(state, reason=NASTY)
    log.apply(
        IncrementalUpdateRequest(
            NAMED, 0.5, metadata={NASTY: LONG, "b": [NASTY]}, actor=NASTY, reason=NASTY
        )
    )
    log.apply(IncrementalUpdateRequest(LONG, 0.5))
    log.create_version(f"{NASTY} {LONG[:400]}")
    heard = log.history.store.replicas
    for name, state in ((f"fenced {NASTY}", "fenced"), ("well", "ready"), ("left", "stopped")):
        incarnation = heard.begin(name, "host", None, "1", 600.0)
        standing = ReplicaStanding(state, f"why {NASTY}", None, None, None, None, 0, 0.0)
        heard.report(name, incarnation, saying(standing), 600.0)
    return http


def saying(standing: ReplicaStanding) -> Said:
    return lambda: (standing, ())


def test_a_model_with_nothing_but_its_first_event(http: httpx2.Client) -> None:
    for path in ("/", "/ui/timeline", "/ui/events/seq:0", "/ui/versions", "/ui/audit"):
        assert http.get(path).status_code == 200, path
    assert "none follow this log" in http.get("/").text
    assert "it has 1 more model: the other one" in http.get("/").text
    assert "elsewhere" not in http.get("/ui/versions").text


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_bounded(touched: httpx2.Client, path: str) -> None:
    reply = touched.get(path)
    assert reply.status_code == 200, reply.text
    assert len(reply.content) < 400_000
    assert Links(reply.text).inline == []
    assert "<script>document" not in reply.text
    assert not re.search("[\x1b\u202e]", reply.text)
    if "each" in path:  # what moved farthest is drawn
        assert re.search("120 that moved farthest of 1000[0-9] layers", reply.text)


def test_a_fenced_replica_is_told_where_one_looks_first(touched: httpx2.Client) -> None:
    text = touched.get("/").text
    assert re.search(r'<a href="/ui/fleet">1 ready</a> <span class="failed">✖ fenced ', text)
    assert "is fenced: why " in text
    assert "stopped" not in text
    assert "✖ fenced" in touched.get("/ui/fleet").text


def test_ten_thousand_parameters_are_found_by_name(touched: httpx2.Client) -> None:
    assert "500 of 10,002 are shown" in touched.get("/ui/parameters").text
    assert touched.get("/ui/parameters?text=9999").text.count("<tr data-href") == 1
    assert touched.get("/ui/parameters/9999.weight").status_code == 200
    for name in (NAMED, LONG):
        reply = touched.get("/ui/parameters/" + httpx2.URL("/" + name).raw_path.decode()[1:])
        assert reply.status_code in (200, 414), reply.text


def test_what_a_page_asks_of_the_database_does_not_grow_with_what_it_shows(
    sqlite_url: str,
) -> None:
    Ledger.open(sqlite_url).close()
    with counted(sqlite_url) as (ledger, counting):
        log = ledger.model("m", base={"w": torch.zeros(2)})
        for number in range(40):
            log.apply(IncrementalUpdateRequest("w", float(number)))
            log.create_version(f"number {number}")
        asked = []
        for shown in (3, 30):
            nodes = [version.seq for version in log.versions()[:shown]]
            counting.taken()
            assert len(facts.versions(log.history, shown, None)[0]) == shown
            assert len(log.history.naming(nodes)) == shown
            rollback = facts.rollback(SimpleNamespace(log=log, metrics=dict), f"seq:{nodes[-1]}")
            assert len(rollback.left_behind) == shown - 1
            asked.append(counting.taken()["statements"])
        assert asked[1] - asked[0] < 20, asked  # not one for each of what is shown
