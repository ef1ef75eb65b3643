"""A command of the tests' own: a plan that is worked out by whatever the test says."""

from collections.abc import Callable
from dataclasses import dataclass

from weightledger import Caller, Plan, Staged, add_command


@dataclass(frozen=True)
class Planned:
    """Do what `plan` works out on the newest state."""

    plan: Callable[[Staged], Plan]
    caller: Caller = Caller()  # noqa: RUF009
    metadata: str | None = None
    digest: bytes | None = None


def work_out(command: Planned, staged: Staged) -> Plan:
    staged.make_room()
    return command.plan(staged)


add_command(Planned, work_out, switch="incremental learning")
