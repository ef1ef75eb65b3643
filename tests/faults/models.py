"""Models that the servers of these tests load by `--model tests.faults.models:factory`."""

import os

import torch

SEED = "FAULTS_SEED"
OUTPUTS = "FAULTS_OUTPUTS"


def factory() -> torch.nn.Module:
    """A linear layer whose updates are large payloads, and one whose updates are small ones."""
    torch.manual_seed(int(os.environ.get(SEED, "1")))
    outputs = int(os.environ.get(OUTPUTS, "4"))
    return torch.nn.Sequential(
        torch.nn.Linear(400, 400), torch.nn.ReLU(), torch.nn.Linear(400, outputs)
    )


class Meddling(torch.nn.Module):
    """Writes to its own weights when an input begins with one of these numbers."""

    COUNTED, UNCOUNTED = 1001.0, 1002.0

    def __init__(self) -> None:
        super().__init__()
        self.used = torch.nn.Linear(4, 4)
        self.other = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs[0, 0] == self.COUNTED:
            with torch.no_grad():
                self.other.weight.add_(1)
        if inputs[0, 0] == self.UNCOUNTED:
            self.other.weight.data.add_(1)
        return self.other(self.used(inputs))


def meddling() -> torch.nn.Module:
    torch.manual_seed(1)
    return Meddling()
