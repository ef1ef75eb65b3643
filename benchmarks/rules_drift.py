"""Which learning rules help a trained model whose data drifts, and which harm it.

    python -m benchmarks.rules_drift

A 64-128-10 network is trained on 700 of scikit-learn's digits. Then comes a stream of 1400 others:
turning from 0° to 60°, or with ever more pixels swapped, or as they were. Each window of samples is
answered first and then learnt from, by the last layer only, through the real ledger: what a rule
proposes is an event, and a gated window (50 samples, score then learn, paired exact test) may be
refused. Beside the rules: the frozen network, SGD on the cross-entropy, and scikit-learn's
`partial_fit` on the same hidden activities. Figures are accuracies over the whole stream.
"""

import asyncio
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import rules
from benchmarks.measure import RESULTS, machine
from ledger import DynamicModelManager, DynamicUpdateConfig, TorchEngine
from rules import DTESNDynamicIntegration, DTESNLearningConfig, Guards, PairedGate

TRAINED, STREAM, CLASSES, HIDDEN = 700, 1400, 10, 128
WINDOW, GATED = 10, 50
DRIFTS = ("turning", "swapped", "none")
READOUT = "2.weight"
SGD_RATE = 0.1


@dataclass(frozen=True)
class Way:
    """One line of the table: how the last layer learns."""

    name: str
    rule: str | None = None
    config: dict[str, Any] | None = None
    rate: float | None = None
    gated: bool = False


WAYS = (
    Way("frozen"),
    Way("SGD"),
    Way("scikit-learn partial_fit"),
    Way("rls, λ .995", "rls", {"forgetting": 0.995}),
    Way("rls, λ .995, gated", "rls", {"forgetting": 0.995}, gated=True),
    Way("nlms", "nlms", rate=0.5),
    Way("nlms, gated", "nlms", rate=0.5, gated=True),
    Way("node perturbation", "node-perturbation", {"sigma": 0.1}, rate=0.01),
    Way("reinforce", "reinforce", rate=0.05),
    Way("hebb", "hebb", rate=0.001),
    Way("hebb, gated", "hebb", rate=0.001, gated=True),
    Way("oja", "oja", rate=0.001),
    Way("oja, gated", "oja", rate=0.001, gated=True),
    Way("bcm", "bcm", {"tau_theta": 50.0}, rate=1e-5),
    Way("bcm, gated", "bcm", {"tau_theta": 50.0}, rate=1e-5, gated=True),
    Way("feedback thresholds", "thresholds", rate=SGD_RATE),
    Way("hebbian-delta, fixed", "hebbian-delta", rate=SGD_RATE),
    Way("stdp-delta, fixed", "stdp-delta", rate=SGD_RATE),
    Way("bcm-delta, fixed", "bcm-delta", rate=SGD_RATE),
)


@dataclass(frozen=True)
class Task:
    """A trained network and a drifting stream, as images and labels."""

    module: nn.Sequential
    images: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor
    seen_labels: torch.Tensor


def task(drift: str, seed: int) -> Task:
    drawn = np.random.default_rng(seed)
    data = load_digits()
    order = drawn.permutation(len(data.target))
    pixels, labels = data.images[order] / 16, data.target[order]
    module = trained(pixels[:TRAINED], labels[:TRAINED], seed)
    chosen = TRAINED + drawn.permutation(STREAM) % (len(order) - TRAINED)
    swaps = drawn.permutation(64)
    images = []
    for place, number in enumerate(chosen):
        image = pixels[number]
        if drift == "turning":
            image = rotate(image, 60 * place / STREAM, reshape=False, order=1)
        elif drift == "swapped":  # a growing share of the pixels is where the permutation puts it
            share = int(32 * place / STREAM)
            flat = image.ravel().copy()
            flat[swaps[: 2 * share]] = image.ravel()[np.roll(swaps[: 2 * share], share)]
            image = flat.reshape(8, 8)
        images.append(image.ravel())
    return Task(
        module,
        torch.tensor(np.array(images), dtype=torch.float32),
        torch.tensor(labels[chosen]),
        torch.tensor(pixels[:TRAINED].reshape(TRAINED, 64), dtype=torch.float32),
        torch.tensor(labels[:TRAINED]),
    )


def trained(pixels: Any, labels: Any, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    x = torch.tensor(pixels.reshape(len(pixels), 64), dtype=torch.float32)
    wanted = torch.tensor(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(module(x[batch]), wanted[batch]).backward()
            optimizer.step()
    return module.eval()


def gradient(x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """−∂ cross-entropy/∂W, the mean over the samples."""
    return (one_hot(labels, CLASSES) - y.softmax(1)).mT @ x / len(x)


def frozen(given: Task) -> float:
    with torch.no_grad():
        return float((given.module(given.images).argmax(1) == given.labels).float().mean())


def sgd(given: Task) -> float:
    weight, bias = given.module[2].weight.detach().clone(), given.module[2].bias.detach()
    right = 0
    with torch.no_grad():
        hidden = torch.relu(given.module[0](given.images))
        for x, labels in zip(hidden.split(WINDOW), given.labels.split(WINDOW), strict=True):
            right += int(((x @ weight.mT + bias).argmax(1) == labels).sum())
            for one, label in zip(x.split(1), labels.split(1), strict=True):
                weight += SGD_RATE * gradient(one, one @ weight.mT + bias, label)
    return right / STREAM


def partial_fit(given: Task) -> float:
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, random_state=0)
    right = 0
    with torch.no_grad():
        seen = torch.relu(given.module[0](given.seen)).numpy()
        hidden = torch.relu(given.module[0](given.images))
    for _ in range(20):
        model.partial_fit(seen, given.seen_labels.numpy(), classes=np.arange(CLASSES))
    for x, labels in zip(hidden.split(WINDOW), given.labels.split(WINDOW), strict=True):
        right += int((model.predict(x.numpy()) == labels.numpy()).sum())
        model.partial_fit(x.numpy(), labels.numpy())
    return right / STREAM


PEERS: dict[str, Callable[[Task], float]] = {
    "frozen": frozen,
    "SGD": sgd,
    "scikit-learn partial_fit": partial_fit,
}


def observed(
    way: Way, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, drawn: torch.Generator
) -> dict[str, torch.Tensor]:
    """What the rule wants to know of a window."""
    target = one_hot(labels, CLASSES).float()
    if way.rule == "reinforce":
        chances = y.softmax(1)
        taken = torch.multinomial(chances, 1, generator=drawn)[:, 0]
        action = one_hot(taken, CLASSES).float()
        reward = (taken == labels).float()
        return {"x": x, "mean": chances, "action": action, "reward": reward}
    if way.rule == "node-perturbation":
        noise = torch.randn(y.shape, generator=drawn) * 0.1
        loss = cross_entropy(y, labels, reduction="none")
        moved = cross_entropy(y + noise, labels, reduction="none")
        return {"x": x, "noise": noise, "loss": loss, "perturbed_loss": moved}
    wanted = {"x": x, "y": y, "target": target}
    known = rules.get_rule(way.rule or "").activities
    return {name: wanted[name] for name in wanted if name in known or way.gated}


async def through_the_ledger(way: Way, given: Task, folder: Path, seed: int) -> dict[str, float]:
    """The stream's accuracy, and how many windows were refused."""
    manager = DynamicModelManager(
        TorchEngine(given.module), "digits", config=DynamicUpdateConfig(backup_dir=folder)
    )
    config = DTESNLearningConfig(batch_size=1, enable_homeostasis=False)
    # The norm limit would refuse the harm that this experiment is to show.
    bridge = DTESNDynamicIntegration(manager, config, guards=Guards(norm=None))
    drawn = torch.Generator().manual_seed(seed)
    size = GATED if way.gated else WINDOW
    right = refused = 0
    last = 0.0
    for images, labels in zip(given.images.split(size), given.labels.split(size), strict=True):
        with torch.no_grad(), manager.lease() as live:
            x = torch.relu(live.module[0](images))
            y = live.module[2](x)
        correct = int((y.argmax(1) == labels).sum())
        right += correct
        if not bool(y.isfinite().all()):  # it has diverged, and nothing can be learnt from that
            refused += 1
            continue
        if way.rule == "thresholds" or str(way.rule).endswith("-delta"):
            # The mean over the window, for as many samples: as long a step as SGD's.
            change = {"accuracy_change": correct / len(labels) - last}
            result = await bridge.enhanced_incremental_update(
                READOUT,
                gradient(x, y, labels) * len(labels),
                way.rate,
                change,
                rule=None if way.rule == "thresholds" else way.rule,
            )
        else:
            result = await bridge.learn(
                READOUT,
                observed(way, x, y, labels, drawn),
                rule=way.rule,
                learning_rate=way.rate,
                rule_config=way.config,
                gate=PairedGate() if way.gated else None,
            )
        last = correct / len(labels)
        refused += not result["success"]
    manager.close()
    return {"accuracy": right / STREAM, "refused": refused / (STREAM / size)}


def measured(way: Way, given: Task, seed: int) -> dict[str, float]:
    if way.rule is None:
        return {"accuracy": PEERS[way.name](given), "refused": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(through_the_ledger(way, given, Path(folder), seed))


def plot(rows: list[dict[str, Any]], drift: str) -> list[str]:
    """A bar for each way, and a line where the frozen network stands."""
    stands = next(row[drift] for row in rows if row["way"] == "frozen")
    lines = []
    for row in rows:
        bar = list("█" * round(50 * row[drift]) + " " * (50 - round(50 * row[drift])))
        bar[min(49, round(50 * stands))] = "│"
        lines.append(f"{row['way']:<26}{''.join(bar)} {row[drift]:.3f}")
    return lines


def main(seeds: int = 5) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for drift in DRIFTS:
        for seed in range(seeds):
            given = task(drift, seed)
            for way in WAYS:
                found.setdefault((way.name, drift), []).append(measured(way, given, seed))
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        row: dict[str, Any] = {"way": way.name}
        for drift in DRIFTS:
            accuracies = [one["accuracy"] for one in found[way.name, drift]]
            row[drift] = statistics.mean(accuracies)
            row[f"{drift}_spread"] = statistics.pstdev(accuracies)
            row[f"{drift}_refused"] = statistics.mean(o["refused"] for o in found[way.name, drift])
        rows.append(row)
    table = Table("last layer", *DRIFTS, "refused, turning", title="Accuracy over the stream")
    for row in rows:
        figures = (f"{row[drift]:.3f} ± {row[drift + '_spread']:.3f}" for drift in DRIFTS)
        table.add_row(row["way"], *figures, f"{row['turning_refused']:.0%}")
    console = Console(width=120)
    console.print(table)
    print("\n".join(plot(rows, "turning")))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "rules_drift.json"
    body = {"seeds": seeds, "machine": machine(), "rows": rows}
    path.write_text(json.dumps(body, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
