"""Others that learn the same last layer from the same hidden activities, without a ledger."""

from collections.abc import Callable

import numpy as np
import torch
from river import linear_model, optim
from sklearn.linear_model import SGDClassifier

from benchmarks.rules_drift.ledgered import WINDOW
from benchmarks.rules_drift.observing import gradient
from benchmarks.rules_drift.streams import CLASSES, STREAM, Task

Peer = Callable[[Task, float], float]
"""Accuracy over the stream at a learning rate."""


def frozen(given: Task, _rate: float) -> float:
    """The network as it was trained."""
    weight, bias = given.readout
    answers = (given.hidden(given.images) @ weight.mT + bias).argmax(1)
    return float((answers == given.labels).double().mean())


def sgd(given: Task, rate: float) -> float:
    """Plain gradient steps on the cross-entropy, a sample a step; the bias stays, as with rules."""
    weight, bias = given.readout
    right = 0
    for x, labels in windows(given):
        right += int(((x @ weight.mT + bias).argmax(1) == labels).sum())
        for one, label in zip(x.split(1), labels.split(1), strict=True):
            weight += rate * gradient(one, one @ weight.mT + bias, label)
    return right / STREAM


def river_softmax(given: Task, rate: float) -> float:
    """`SoftmaxRegression` started at the network's own last layer; its bias learns too."""
    model = linear_model.SoftmaxRegression(optim.SGD(rate))
    weight, bias = given.readout
    for label in range(CLASSES):
        own = dict(enumerate([*weight[label].tolist(), float(bias[label])]))
        model.weights[label].update(own)
    right = 0
    for x, labels in windows(given):
        samples = [dict(enumerate([*row.tolist(), 1.0])) for row in x]
        wanted = labels.tolist()
        right += sum(model.predict_one(s) == w for s, w in zip(samples, wanted, strict=True))
        for sample, label in zip(samples, wanted, strict=True):
            model.learn_one(sample, label)
    return right / STREAM


def partial_fit(given: Task, rate: float) -> float:
    """Ten logistic regressions, one against all others, fitted to what the network was trained on:
    the network's softmax cannot be handed over to them."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=rate, random_state=0)
    seen = given.hidden(given.seen).numpy()
    for _ in range(20):
        model.partial_fit(seen, given.seen_labels.numpy(), classes=np.arange(CLASSES))
    right = 0
    for x, labels in windows(given):
        right += int((model.predict(x.numpy()) == labels.numpy()).sum())
        model.partial_fit(x.numpy(), labels.numpy())
    return right / STREAM


def windows(given: Task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden activities and labels, as many at a time as the rules get."""
    hidden = given.hidden(given.images)
    return list(zip(hidden.split(WINDOW), given.labels.split(WINDOW), strict=True))


PEERS: dict[str, Peer] = {
    "frozen": frozen,
    "SGD": sgd,
    "river SoftmaxRegression": river_softmax,
    "scikit-learn partial_fit": partial_fit,
}
