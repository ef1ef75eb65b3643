"""Record every step of a training run, and go back to any of them."""

import torch

from weightledger import Ledger

module = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
inputs = torch.randn(64, 8)
targets = inputs.sum(1, keepdim=True)

with Ledger.open("sqlite:///training.db") as ledger:
    log = ledger.model("regressor", base=module)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        log.record(module, reason=f"step {step}", metadata={"loss": loss.item()})
    log.create_version("after twenty steps")

    # Any earlier step, bit for bit, without a checkpoint having been written for it.
    module.load_state_dict(log.state("seq:10"))
    print(f"step 10: loss {torch.nn.functional.mse_loss(module(inputs), targets).item():.4f}")
    print(f"recorded while training: {losses[10]:.4f} before that step")
