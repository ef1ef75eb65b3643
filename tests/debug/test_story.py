"""The on-call's story: five hundred updates, one of them poisonous, found, explained and mended.

The poison stays below what the guard refuses; it lies at a random place, with rollbacks and an
adapter's events around it where the model takes one.
"""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.lora import save_adapter
from tests.text_models import llama, save_llama
from weightledger import IncrementalUpdateRequest, Ledger, Log, TorchEngine
from weightledger.api.server import digits
from weightledger.ledger.debug.bisect.bisection import Rules
from weightledger.ledger.debug.walking import ReplayedState
from weightledger.ledger.monitoring.evaluation import scores_of
from weightledger.ledger.writing.policy import Policy

UPDATES = 500
POISONED = 6  # the class whose logit is lifted
SEED = 20261129


def harmless(generator: torch.Generator) -> IncrementalUpdateRequest:
    """A small step of the first layer."""
    where = torch.randperm(64 * 64, generator=generator)[:16]
    step = torch.randn(16, generator=generator) * 0.002
    return IncrementalUpdateRequest("0.weight", step, 1.0, indices=where, actor="trainer")


def poison() -> IncrementalUpdateRequest:
    """Two points of accuracy: well below what the guard refuses."""
    return IncrementalUpdateRequest(
        "2.bias", [7.0], 1.0, indices=[POISONED], actor="nightly", reason="calibrate the head"
    )


def run(log: Log, place: int, *, poisoned: bool) -> str | None:
    """The updates, with a rollback now and then; gives the id of the bad one."""
    generator = torch.Generator().manual_seed(SEED)
    bad = None
    for number in range(UPDATES):
        if number == place:
            if poisoned:
                bad = log.apply(poison()).name
            continue
        log.apply(harmless(generator))
        if number % 97 == 96 and abs(number - place) > 5:
            log.rollback("head~2")
    return bad


def test_the_digits_model_is_broken_explained_and_mended(tmp_path: Path) -> None:
    module, evaluator = digits.load_digits(tmp_path)
    engine = TorchEngine(module)
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    place = random.Random(SEED).randrange(50, UPDATES - 50)

    def accuracy(weights: Mapping[str, torch.Tensor]) -> float:
        scored = evaluator(engine.prepare(dict(weights)).module)
        return float(scores_of(scored).metrics["accuracy"])

    def judge(state: ReplayedState) -> dict[str, float]:
        return {"accuracy": accuracy(state.weights)}

    with Ledger.open(f"sqlite:///{tmp_path}/with.db") as ledger:
        log = ledger.model("digits", base=base)
        log.create_version("as released")
        bad = run(log, place, poisoned=True)
        good, worse = accuracy(log.state("v0")), accuracy(log.state())
        assert 0.02 < good - worse < 0.3, (good, worse)

        # Which update did it, and what did it change?
        rules = Rules(metric="accuracy", drop=0.02)
        found = log.bisect("v0", "head", judge, rules=rules)
        assert found["evaluations"] <= 11
        blamed = found["first_bad"]
        assert (blamed["id"], blamed["actor"]) == (bad, "nightly")
        assert blamed["reason"] == "calibrate the head"
        (changed,) = found["diff"]["by_tensor"]
        assert (changed["name"], changed["changed"], changed["first_index"]) == (
            "2.bias",
            1,
            [POISONED],
        )

        # What would the model be without it? Both modes, and a run that never had it, agree.
        mechanical = log.what_if([bad])
        causal = log.what_if([bad], mode="causal")
        assert mechanical.state.digest.value == causal.state.digest.value
        assert accuracy(causal.state.weights) > worse + 0.02
        with Ledger.open(f"sqlite:///{tmp_path}/without.db") as other:
            never = other.model("digits", base=base)
            run(never, place, poisoned=False)
            assert causal.state.digest.value == never.live.state.value

        # Mended, by an ordinary event; and the way back stays open.
        event = log.adopt_what_if([bad], mode="causal")
        assert event.state_after == causal.state.digest.value
        assert accuracy(log.state()) == accuracy(causal.state.weights)
        log.rollback(found["undo"][-1].split("--to ")[1].split()[0])
        assert accuracy(log.state()) >= good - 0.02
        assert log.verify().ok


def test_an_adapter_that_came_in_between_is_where_it_was(tmp_path: Path) -> None:
    """What-ifs carry adapters along; one that came later is not lost, one left out is gone."""
    from weightledger.ledger.engines.transformers import TransformersEngine

    served = save_llama(tmp_path / "served")
    engine = TransformersEngine.load(served)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("llama", engine=engine)
        name = next(name for name in log.specs if name.endswith("q_proj.weight"))
        bad = log.apply(IncrementalUpdateRequest(name, 0.3, 1.0, indices=[1])).name
        adapter = save_adapter(tmp_path / "adapter", 3, base=llama())
        loaded = log.load_adapter("style", adapter)
        log.apply(IncrementalUpdateRequest(name, 0.1, 1.0, indices=[2]))
        for mode in ("mechanical", "causal"):
            state = log.what_if([bad], mode=mode).state
            assert {one for one in state.tensors if one.startswith("adapter/")} == {
                one for one in log.live.state.specs if one.startswith("adapter/")
            }
            gone = log.what_if([loaded.name], mode=mode).state
            assert not [one for one in gone.tensors if one.startswith("adapter/")]


@pytest.mark.soak
def test_minilm_and_a_judge_that_is_wrong_one_time_in_ten(tmp_path: Path) -> None:
    """Embeddings' similarity to those of the released model is what falls."""
    from tests.text_models import MINILM
    from weightledger.ledger.engines.transformers import TransformersEngine

    engine = TransformersEngine.load(MINILM)
    assert engine.embeds is not None
    texts = ["the weights of a model", "a quick brown fox", "what changed since Tuesday?"]
    tokens = [engine.embeds.tokens(text) for text in texts]

    def embeddings(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        module = engine.prepare(dict(weights)).module
        return engine.embeds.embed(module, tokens)

    layer = "encoder.layer.3.output.dense.weight"
    drawn = torch.Generator().manual_seed(SEED)
    place = random.Random(SEED).randrange(20, 180)
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        base = {n: engine.tensor(n) for n in engine.specs()}
        log = ledger.model("minilm", base=base, policy=Policy(operands="all"))
        spec = log.specs[layer]
        bad = None
        for number in range(200):
            where = torch.randperm(spec.numel, generator=drawn)[:64]
            step = torch.randn(64, generator=drawn) * 1e-4
            if number == place:
                whole = torch.randn(spec.shape, generator=drawn) * 0.05
                bad = log.apply(IncrementalUpdateRequest(layer, whole, 1.0)).name
            else:
                log.apply(IncrementalUpdateRequest(layer, step, 1.0, indices=where))
            if number % 61 == 60 and abs(number - place) > 5:
                log.rollback("head~2")
        released = embeddings(log.state("seq:0"))
        errs = random.Random(SEED)

        def judge(state: ReplayedState) -> bool:
            similarity = torch.cosine_similarity(embeddings(state.weights), released).min()
            return bool(similarity > 0.98) != (errs.random() < 0.1)

        found = log.bisect("seq:0", "head", judge, rules=Rules(noisy=True, rate=0.1))
        assert found["first_bad"]["id"] == bad
        assert found["probability"] >= 0.95
        mechanical = log.what_if([bad], mode="causal").state
        similarity = torch.cosine_similarity(embeddings(mechanical.weights), released).min()
        assert similarity > 0.98
