"""Evaluators' answers, and two states compared item by item."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from weightledger import InvalidRequest
from weightledger.ledger.monitoring.evaluation import Scores, scores_of
from weightledger.ledger.monitoring.evaluators.held_out import HeldOut
from weightledger.ledger.monitoring.pairing import paired


def right(*answers: int) -> Scores:
    items = torch.tensor(answers, dtype=torch.float64)
    return Scores({"accuracy": float(items.mean())}, {"accuracy": items})


def test_items_that_both_answer_alike_say_nothing() -> None:
    """McNemar's exact test: 1 better and 6 worse of 107."""
    agreed = [1] * 100
    told = paired(right(*agreed, *[1] * 6, 0), right(*agreed, *[0] * 6, 1), "accuracy")
    assert told is not None
    assert (told.items, told.better, told.worse) == (107, 1, 6)
    assert told.p_worse == 8 / 128
    assert told.p_better == 127 / 128
    assert told.evidence()["p_worse"] == told.p_worse


def test_the_exact_test_is_scipys() -> None:
    from scipy.stats import binomtest

    told = paired(right(*[1] * 30, *[0] * 12), right(*[0] * 30, *[1] * 12), "accuracy")
    assert told is not None
    assert told.p_worse == pytest.approx(binomtest(30, 42, alternative="greater").pvalue)


def test_an_item_that_is_not_finite_any_more_is_worse() -> None:
    before = Scores({"error": 1.0}, {"error": torch.tensor([-1.0, -1.0, torch.nan])})
    after = Scores({"error": 1.0}, {"error": torch.tensor([torch.nan, -0.5, torch.nan])})
    told = paired(before, after, "error")
    assert told is not None
    assert (told.better, told.worse) == (1, 1)


def test_without_the_same_items_there_is_no_pair() -> None:
    assert paired(right(1, 0), right(1), "accuracy") is None
    assert paired(right(1, 0), Scores({"accuracy": 0.5}), "accuracy") is None
    assert paired(right(1, 0), right(1, 0), "similarity") is None


def test_held_out_examples_are_scored_one_by_one() -> None:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
    scores = HeldOut(torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]]), torch.tensor([0, 1, 1]))(module)
    assert scores.metrics["accuracy"] == pytest.approx(2 / 3)
    assert scores.items["accuracy"].tolist() == [1.0, 1.0, 0.0]


def test_numbers_of_any_library_are_taken() -> None:
    told = scores_of({"accuracy": np.float32(0.5), "error": torch.tensor(2.0), "similarity": 1})
    assert told.metrics == {"accuracy": 0.5, "error": 2.0, "similarity": 1.0}
    told = scores_of(Scores({"accuracy": 0.5}, {"accuracy": [1, 0]}))  # type: ignore[dict-item]
    assert told.items["accuracy"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "gives metrics such as"),
        (0.97, "gives metrics such as"),
        ({1: 0.5}, "by text"),
        ({"accuracy": "0.97"}, "no number"),
        ({"accuracy": None}, "no number"),
        ({"accuracy": torch.zeros(3)}, "no number"),
        (Scores({"accuracy": 1.0}, {"accuracy": torch.zeros(2, 2)}), r"\[items\]"),
        (Scores({"accuracy": 1.0}, {"accuracy": torch.zeros(0)}), r"\[items\]"),
        (Scores({"accuracy": 1.0}, {"loss": torch.zeros(2)}), "no metric"),
        (Scores({"accuracy": 1.0}, {"accuracy": ["a"]}), "no numbers"),  # type: ignore[dict-item]
    ],
)
def test_what_is_no_score_is_said(answer: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        scores_of(answer)


def test_states_that_answer_alike_are_as_likely_better_as_worse() -> None:
    told = paired(right(1, 0, 1), right(1, 0, 1), "accuracy")
    assert told is not None
    assert (told.items, told.better, told.worse, told.p_better, told.p_worse) == (3, 0, 0, 1.0, 1.0)


def test_an_example_is_wrong_whose_scores_are_no_numbers_whichever_they_are() -> None:
    outputs = torch.tensor(
        [[9.0, 1], [3e38, -3e38], [torch.inf, 1], [9, -torch.inf], [9, torch.nan], [-0.0, -1]]
    )
    scores = HeldOut(outputs, torch.zeros(len(outputs), dtype=torch.int64))(nn.Identity())
    assert scores.items["accuracy"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
