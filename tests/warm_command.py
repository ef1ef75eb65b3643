"""Run as `weightledger` is, by a shell: has a process do it that need not import anything.

    python -I -S tests/warm_command.py SOCKET ARGUMENT…

It starts in a hundredth of a second, hands over its arguments, environment, folder, input and
output, and ends as that process does. `tests.warm.shell_command` answers at the socket.
"""

import json
import os
import signal
import socket
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as quietly as a program that knows nothing of it
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect(sys.argv[1])
task = {"args": sys.argv[2:], "env": dict(os.environ), "cwd": os.getcwd()}
socket.send_fds(line, [json.dumps(task).encode()], [1, 2, 0])
status = int(line.recv(16))
sys.exit(status if status >= 0 else 128 - status)  # as a shell says what signal it was
