"""The suites.

Threads of torch sleep between two steps here, as in a server, and so do those of the processes that
tests start: spinning on processors that others need takes longer than most of what is computed.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
