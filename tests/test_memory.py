"""Recording into a large model needs little beside the model and the touched tensor."""

import json
import subprocess
import sys

# Four tensors of 64 MiB; the operand is one number, so every weight of one tensor changes.
# What does not grow with them is a smaller part of larger ones.
RECORD = """
import json, sys, threading, time
import psutil, torch
from weightledger import IncrementalUpdateRequest, Ledger, StateEngine

process = psutil.Process()
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)

side = int(sys.argv[2])
state = {f"layer{n}": torch.randn(side, side) * 0.02 for n in range(4)}
with Ledger.open(sys.argv[1]) as ledger:
    engine = StateEngine(state)
    del state
    log = ledger.model("large", engine=engine)
    warm = IncrementalUpdateRequest("layer0", torch.ones(()), 1e-3, "additive")
    log.apply(warm)
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    event = log.apply(IncrementalUpdateRequest("layer1", 0.37, 1e-3))
    done.set()
    watcher.join()
    print(json.dumps({"extra": peak - before, "changed": event.changes[0].changed}))
"""


def test_peak_memory_is_the_model_and_at_most_one_and_a_half_touched_tensors(
    tmp_path,
) -> None:
    side = 4096
    tensor_bytes = 4 * side * side
    ran = subprocess.run(
        [sys.executable, "-c", RECORD, f"sqlite:///{tmp_path}/l.db", str(side)],
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(ran.stdout)
    assert result["changed"] > 0.99 * side * side
    assert result["extra"] <= 1.5 * tensor_bytes
