"""What is forked for a test ends as a Python that was started does."""

import subprocess
from pathlib import Path

import pytest

from tests import warm

PROGRAM = """
import atexit, os, sys, threading
atexit.register(print, "at exit")

def outlive():
    threading.main_thread().join()
    print("thread")

threading.Thread(target=outlive).start()
print("done")
"""


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why"),
        ("raise ValueError('why')", 1, "ValueError: why"),
    ],
)
def test_its_status_its_output_and_its_exit_handlers(end: str, status: int, told: str) -> None:
    ran = warm.run(program=PROGRAM + end)
    assert ran.returncode == status
    assert sorted(ran.stdout.split("\n")) == ["", "at exit", "done", "thread"]
    assert ran.stderr.strip().endswith(told)


def test_a_shell_gets_its_output_and_status(tmp_path: Path) -> None:
    command = tmp_path / "weightledger"
    with warm.shell_command(command):
        helped = subprocess.run([command, "--help"], capture_output=True, text=True)
        wrong = subprocess.run(
            f"{command} show head --data-dir nowhere; echo status $?",
            shell=True,
            capture_output=True,
            text=True,
        )
    assert helped.returncode == 0 and "rollback" in helped.stdout
    assert wrong.stdout == "status 1\n" and wrong.stderr.startswith("weightledger: ")
