"""Serve a model to threads of this process while updates come; each answer names its state."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch

from weightledger import (
    DynamicModelManager,
    DynamicUpdateConfig,
    IncrementalUpdateRequest,
    TorchEngine,
)

config = DynamicUpdateConfig(backup_dir="served-data")
manager = DynamicModelManager(TorchEngine(torch.nn.Linear(4, 2)), "served", config=config)


def infer(row: torch.Tensor) -> tuple[int, torch.Tensor]:
    with manager.lease() as live, torch.no_grad():
        return live.seq, live.module(row)


async def main() -> None:
    await manager.create_initial_version("as it came")
    with ThreadPoolExecutor(4) as readers:
        answers = [readers.submit(infer, torch.ones(4)) for _ in range(100)]
        for number in range(10):
            update = IncrementalUpdateRequest("bias", 1.0, learning_rate=0.1, reason=f"{number}")
            await manager.apply_incremental_update(update)
        seen = sorted({answer.result()[0] for answer in answers})
    print("states that answered:", seen)
    print(await manager.rollback_to_version("head~10"))


asyncio.run(main())
manager.close()
