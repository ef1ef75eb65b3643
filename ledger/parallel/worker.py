"""A worker: reads tasks from standard input, answers on standard output, ends with who started it.

What tasks print goes to standard error. It ends the moment its input does, so that none is left
behind when the process that started it is killed.
"""

import gc
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import NoReturn

from weightledger.ledger.parallel import Cancelled, commands
from weightledger.ledger.parallel.doing import do, pack
from weightledger.ledger.parallel.frames import receive, send

_STDOUT, _STDERR = 1, 2

_TELL_EVERY_S = 0.1


def main() -> None:
    """Work off what comes on standard input."""
    gc.set_threshold(50_000)  # what its tasks import stays, as for `weightledger.api.cli.main`
    out = os.dup(sys.stdout.fileno())
    work_off(sys.stdin.fileno(), out)


def work_off(into: int, out: int) -> NoReturn:
    """Do what comes until nothing can come any more, which ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    os.dup2(_STDERR, _STDOUT)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(into, requests), daemon=True).start()
    while True:
        _work(requests.get(), out)


def _listen(into: int, requests: "queue.SimpleQueue[bytes]") -> None:
    while (request := receive(into)) is not None:
        requests.put(request)
    commands.end_all()
    os._exit(0)


def _work(request: bytes, out: int) -> None:
    last = 0.0

    def told(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_EVERY_S:
            last = now
            send(out, pack({"done": done, "total": total}))

    try:
        answer = do(request, told)
    except Cancelled:
        return
    except Exception:  # noqa: BLE001  a fault of ours: it is told, and ends what waits for it
        answer = {"fault": traceback.format_exc()}
    send(out, pack(answer))


if __name__ == "__main__":
    main()
