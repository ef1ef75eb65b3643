"""A plugin of pytest-xdist: a test that ended its worker has failed, and is not run again.

`--dist loadscope` gives it to the next worker with the rest of its file, and so on for ever.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController


class Scopes(LoadScopeScheduling):
    """Files to workers, as loadscope has it."""

    def remove_node(self, node: WorkerController) -> str | None:
        """What the worker was at, if it died, which counts as done."""
        for scope in self.assigned_work[node].values():
            for name, done in scope.items():
                if not done:
                    scope[name] = True
                    super().remove_node(node)
                    return name
        return super().remove_node(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scopes:
    return Scopes(config, log)
