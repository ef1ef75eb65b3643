"""Causal what-ifs by several processes: the same words, numbers and files as by one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import weightledger.rules  # noqa: F401  which says how learning is worked out again
from tests.api.test_command import inside
from tests.parallel.test_sharing import Here
from weightledger import IncrementalUpdateRequest, Ledger
from weightledger.ledger.debug import replaying
from weightledger.ledger.debug.whatif import causal_parallel
from weightledger.ledger.debug.whatif.derivations import derivation_modules
from weightledger.ledger.errors import CannotDerive
from weightledger.ledger.history.reading import reading
from weightledger.ledger.parallel import Executor
from weightledger.ledger.parallel.choosing import executing

MODEL = "m"
OURS = ["seq:4", "seq:5", "seq:6"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Updates whose order matters; the third event's values came ready from elsewhere."""
    folder = tmp_path_factory.mktemp("causal")
    at = f"sqlite:///{folder}/ledger.db"
    random = torch.Generator().manual_seed(9)
    base = {"w": torch.randn(400, generator=random), "b": torch.zeros(7, dtype=torch.bfloat16)}
    with Ledger.open(at) as ledger:
        log = ledger.model(MODEL, base=base)

        def change(name: str, how: str, value: float) -> None:
            log.apply(IncrementalUpdateRequest(name, value, update_type=how, learning_rate=1.0))

        change("w", "additive", 1.0)
        change("w", "multiplicative", 2.0)
        log.record({**log.state(), "b": torch.ones(7, dtype=torch.bfloat16)})
        change("w", "additive", 0.5)
        change("w", "multiplicative", 3.0)
        change("b", "additive", 2.0)
    return at


@pytest.fixture(scope="module")
def two() -> Iterator[Executor]:
    with executing("local", 2, prepare=lambda: None) as executor:
        yield executor


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_parallel, "worth", lambda seconds, executor: executor.jobs)


def test_a_causal_what_if_is_the_same_by_shares(url: str, two: Executor, tmp_path: Path) -> None:
    one, several = tmp_path / "one.safetensors", tmp_path / "several.safetensors"
    asked = replaying.StateRequest("head", ["seq:4"], "causal")
    with reading(url, MODEL) as history:
        alone = replaying.described_by(history, asked, Here(1))
        assert alone["derived"] == 2 and [one["name"] for one in alone["changed"]] == ["w"]
        assert replaying.described_by(history, asked, two) == alone
        facts = replaying.save(history, asked, one, executor=Here(1))
        assert replaying.save(history, asked, several, executor=two) == facts
    expected, got = load_file(one), load_file(several)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    with safe_open(one, "pt") as first, safe_open(several, "pt") as second:
        assert first.metadata() == second.metadata()
        assert any("what-if (causal)" in text for text in second.metadata().values())


def test_several_are_compared_and_one_that_cannot_be_told_says_why(url: str, two: Executor) -> None:
    asked = replaying.StateRequest("head", ["seq:1", *OURS], "causal")
    with reading(url, MODEL) as history:
        alone = replaying.described_each(history, asked, Here(1))
        assert (
            "update_3" in alone[0]["reason"] and "came ready from elsewhere" in alone[0]["reason"]
        )
        assert [one["derived"] for one in alone[1:]] == [2, 1, 0]
        assert len({one["digest"] for one in alone[1:]}) == 3
        assert replaying.described_each(history, asked, two) == alone


def test_what_cannot_be_derived_is_refused_in_the_same_words(url: str) -> None:
    said = set()
    with reading(url, MODEL) as history:
        for jobs in (1, 3):
            with pytest.raises(CannotDerive) as refused:
                replaying.described_by(
                    history, replaying.StateRequest("head", ["seq:2"], "causal"), Here(jobs)
                )
            said.add((str(refused.value), refused.value.seq))
    assert len(said) == 1


def test_bits_that_are_not_the_recorded_ones_are_found_by_the_proof(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What-ifs that begin behind them are told all the same."""

    def prove(actual, event, what):
        real(actual, event, what)
        if event.seq == 4:
            raise CannotDerive("other bits", seq=4)

    real = causal_parallel.prove
    monkeypatch.setattr(causal_parallel, "prove", prove)
    asked = replaying.StateRequest("head", OURS, "causal")
    with reading(url, MODEL) as history:
        told = replaying.described_each(history, asked, Here(3))
    assert told[0]["reason"] == "other bits"
    assert all("reason" not in one for one in told[1:])


def test_what_another_processor_worked_out_is_worked_out_again_here(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = iter(("one kind", "another"))
    monkeypatch.setattr(causal_parallel, "_processor", lambda: next(kinds))
    asked = replaying.StateRequest("head", ["seq:4"], "causal")
    with reading(url, MODEL) as history:
        alone = replaying.save(history, asked, tmp_path / "one", executor=Here(1))
        monkeypatch.setattr(causal_parallel, "_found", None)  # what it said is not believed
        assert replaying.save(history, asked, tmp_path / "two", executor=Here(2)) == alone
    assert torch.equal(load_file(tmp_path / "one")["w"], load_file(tmp_path / "two")["w"])


def test_the_command_compares_them(url: str) -> None:
    without = [word for name in ("seq:1", *OURS) for word in ("--without", name)]
    where = ("--database", url)
    for more in ((), ("--mode", "causal")):
        status, out, err = inside("replay", *without, "--each", *more, "--json", *where)
        assert status == 0, err
        told = json.loads(out)
        assert [one["without"][0][:8] for one in told] == [f"update_{n}" for n in (1, 4, 5, 6)]
        assert "reason" in told[0] and told[3]["changed"]
    status, out, err = inside("replay", *without, "--each", *where)
    assert status == 0 and "was touched again" in out, err
    status, _, err = inside("replay", *without, "--each", "-o", "x", *where)
    assert status == 2 and "--each compares" in err


def test_workers_are_told_what_knows_how_to_derive() -> None:
    assert any(module.startswith("weightledger.rules.") for module in derivation_modules())
