"""The same updates lead to the same bits whatever instructions the processor has.

torch picks its kernels when it first computes; `ATEN_CPU_CAPABILITY` holds it at an older set. A
processor that has no AVX-512 runs what it has, so every level is one that exists here.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

LEVELS = ("default", "avx2", "avx512")

# Random bits among the operands, so that rounding, denormals and both signs come up.
UPDATES = """
import json, sys
import numpy as np, torch
from weightledger import IncrementalUpdateRequest as Update, Ledger

torch.set_num_threads(int(sys.argv[2]))
chance = np.random.default_rng(7)

def values(*shape):
    return torch.from_numpy(chance.standard_normal(shape) * 10.0 ** chance.integers(-9, 3, shape))

base = {
    str(dtype).removeprefix("torch."): values(300, 257).to(dtype)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}
with Ledger.open(sys.argv[1]) as ledger:
    log = ledger.model("m", base=base)
    for name in base:
        log.apply(Update(name, values(300, 257) * 1e-3, 0.37))
        log.apply(Update(name, values(300, 257) * 1e-4, 0.11, "multiplicative"))
        at = chance.permutation(300 * 257)[:5000]
        log.apply(Update(name, values(5000), 1e-3, indices=at))
        log.apply(Update(name, values(300, 257), 1.0, "replace"))
        factors = {"a": values(300, 3), "b": values(3, 257) * 1e-3}
        log.apply(Update(name, learning_rate=0.01, factors=factors))
    log.apply_batch([Update(name, 1e-3, 0.5) for name in base])
    digests = [event.state_after.hex() for event in log.events()]
    rebuilt = ledger.history("m").state("head")
    live = {name: log.projector.engine.tensor(name) for name in base}
    same = all(torch.equal(rebuilt[name].view(torch.uint8), live[name].view(torch.uint8))
               for name in base)
print(json.dumps({"level": torch.backends.cpu.get_cpu_capability(), "digests": digests,
                  "rebuilt": same}))
"""

REBUILD = """
import json, sys
import torch
from weightledger import Ledger

with Ledger.open(sys.argv[1]) as ledger:
    history = ledger.history("m")
    for seq in range(history.head().seq + 1):
        history.state(f"seq:{seq}")  # raises unless every bit is as recorded
    print(json.dumps({"level": torch.backends.cpu.get_cpu_capability()}))
"""


# Imports what takes seconds once, and computes nothing with torch before it has forked.
EACH = """
import json, os, sys
import torch
import alembic.command, sqlalchemy.dialects.sqlite
import tests.numba_ready, weightledger.ledger.ledger, weightledger.ledger.opening

for level, program, *arguments in json.loads(sys.argv[1]):
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, level
        continue
    os.environ["ATEN_CPU_CAPABILITY"] = level
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})
    sys.stdout.flush()
    os._exit(0)  # to take apart what was imported takes longer than the program
"""


def run(*runs: tuple[str, ...]) -> list[dict[str, Any]]:
    """What programs print: each with its level and its arguments, one after the other."""
    ran = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(runs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return list(map(json.loads, ran.stdout.splitlines()))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each level has computed; and what it has rebuilt of another's, as "level of level"."""
    folder = tmp_path_factory.mktemp("levels")
    urls = {level: f"sqlite:///{folder}/{level}.db" for level in LEVELS}
    updates = [(level, UPDATES, urls[level], str(n)) for n, level in enumerate(LEVELS, start=1)]
    directions = {"default of avx512": "avx512", "avx512 of default": "default"}
    rebuilds = [(name.split()[0], REBUILD, urls[of]) for name, of in directions.items()]
    return dict(zip([*LEVELS, *directions], run(*updates, *rebuilds), strict=True))


def test_every_level_computes_the_same_digests(results: dict[str, dict[str, Any]]) -> None:
    levels = {results[level]["level"] for level in LEVELS}
    if len(levels) == 1:
        pytest.skip(f"this processor has one instruction set: {levels}")
    first = results["default"]["digests"]
    assert len(set(first)) > 20
    for level in LEVELS:
        assert results[level]["rebuilt"]
        assert results[level]["digests"] == first


def test_what_one_level_wrote_another_rebuilds(results: dict[str, dict[str, Any]]) -> None:
    for rebuilt in ("default of avx512", "avx512 of default"):  # which raises if it cannot
        assert results[rebuilt]["level"] == results[rebuilt.split()[0]]["level"]
