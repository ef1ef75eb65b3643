"""Logs with one event that broke the model, and judges that see it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from weightledger import IncrementalUpdateRequest, Ledger

POISONED = 3  # the element of "w" that the bad event puts above one half

JUDGE = f'''"""Whether element {POISONED} of "w" is below one half: looks at the file by itself."""
import json, os, struct, sys
data = open(sys.argv[-1], "rb").read()
length = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + length])
assert header["__metadata__"]["weight_ledger.seq"] == os.environ["WEIGHTLEDGER_SEQ"]
assert header["__metadata__"]["weight_ledger.version"] == os.environ["WEIGHTLEDGER_VERSION"]
start = 8 + length + header["w"]["data_offsets"][0]
value = struct.unpack_from("<f", data, start + 4 * {POISONED})[0]
'''


@dataclass(frozen=True)
class Made:
    """A ledger's folder, and the seq of its bad event."""

    folder: Path
    poison: int

    @property
    def at(self) -> tuple[str, ...]:
        return ("--data-dir", str(self.folder))


def make(folder: Path, *, before: int = 20, after: int = 20, rollbacks: bool = True) -> Made:
    """`before` harmless updates, the bad one, `after` more; some are rolled back on the way."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)

    def harmless() -> IncrementalUpdateRequest:
        step = torch.rand(16, generator=generator) * 0.01
        step[POISONED] = 0
        return IncrementalUpdateRequest("w", step, learning_rate=1.0, actor="nightly")

    with Ledger.open(f"sqlite:///{folder}/ledger.db") as ledger:
        log = ledger.model("small", base={"w": torch.zeros(16), "beside": torch.ones(4)})
        log.create_version("as it was good")
        for number in range(before):
            log.apply(harmless())
            if rollbacks and number % 7 == 6:
                log.rollback("head~3")
        step = torch.zeros(16)
        step[POISONED] = 1
        bad = IncrementalUpdateRequest(
            "w", step, learning_rate=1.0, actor="mallory", reason="tuning"
        )
        poison = log.apply(bad).seq
        for number in range(after):
            log.apply(harmless())
            if rollbacks and number % 7 == 6:
                log.rollback("head~3")
    return Made(folder, poison)


def judge(folder: Path, ending: str = "sys.exit(int(value > 0.5))", name: str = "judge.py") -> str:
    """The path of a judge that is a program; `ending` is its last line, with `value` at hand."""
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{JUDGE}{ending}\n")
    file.chmod(0o755)
    return str(file)
