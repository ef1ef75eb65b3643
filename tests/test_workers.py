"""What `make test` forks is a worker as one that was started: it computes, dies and is replaced."""

from pathlib import Path

from tests import warm

_RUN = """
import sys, warnings
from tests import workers
warnings.simplefilter("default")  # it was forked with errors, and plugins of pytest warn
sys.exit(workers.main(2, ["-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", *sys.argv[1:]]))
"""
_COMPUTES = """
import os, threading
import torch
from tests import warm
from tests.waiting import HELPERS

IMPORTED_BY = os.getpid()
PRODUCT = torch.ones(600, 600) @ torch.ones(600, 600)  # by all threads, where it may

def test_it_is_a_fork_with_threads_to_compute_with():
    assert IMPORTED_BY == os.getppid() != os.getpid()
    assert torch.get_num_threads() == int(os.environ["THREADS"])
    weights = torch.ones(2000, 2000, requires_grad=True)
    (weights @ weights).sum().backward()
    assert weights.grad.sum() == 2 * 2000**3
    assert threading.main_thread() is threading.current_thread()

def test_commands_are_forked_from_a_process_without_tests():
    ran = warm.run(program="import sys; print('pytest' in sys.modules, 'torch' in sys.modules)")
    assert (ran.returncode, ran.stdout) == (0, "False True\\n")
    (helper,) = HELPERS
    assert os.path.exists(f"/proc/{helper}")
"""
_DIES = """
import os
def test_that_dies(): os._exit(9)
def test_that_comes_after_it(): pass
def test_that_fails(): assert False
"""


def test_workers_compute_die_and_are_replaced(tmp_path: Path) -> None:
    import torch

    (tmp_path / "test_computes.py").write_text(_COMPUTES)
    (tmp_path / "test_dies.py").write_text(_DIES)
    threads = {"THREADS": str(torch.get_num_threads())}
    ran = warm.run(str(tmp_path), program=_RUN, env=threads)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "2 failed, 3 passed" in ran.stdout
    assert ran.stdout.count("node down") == 1  # what ended a worker is not run again
    assert "crashed while running" in ran.stdout and "test_that_dies" in ran.stdout
