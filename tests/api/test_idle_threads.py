"""How torch's threads wait in a server: what the command says before torch can read it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The command itself, up to where it imports torch.
UP_TO_TORCH = """
import os, sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ["OMP_WAIT_POLICY"], flush=True)
            os._exit(7)

sys.meta_path.insert(0, Torch())
from weightledger.api.cli import main
main()
"""


@pytest.mark.parametrize(
    ("verb", "said", "policy"),
    [("serve", None, "PASSIVE"), ("follow", None, "PASSIVE"), ("serve", "ACTIVE", "ACTIVE")],
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(
    verb: str, said: str | None, policy: str, tmp_path: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if said is None else {"OMP_WAIT_POLICY": said}
    command = [sys.executable, "-c", UP_TO_TORCH, verb, "--data-dir", str(tmp_path)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (ran.stdout.split(), ran.returncode) == ([policy], 7), ran.stderr
