"""The tree of states as lines: drawn from the seqs and the rollbacks alone."""

import textwrap

from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.debug.graph import DrawnEvent, graph


def drawing(seqs: list[int], rollbacks: list[tuple[int, int]]) -> str:
    marks = {seq: "o" for seq, _ in rollbacks}
    nodes = [DrawnEvent(seq, marks.get(seq, "*")) for seq in seqs]
    lines: list[str] = []
    for node, drawn in zip(nodes, graph(nodes, rollbacks), strict=True):
        lines += [*drawn.joins, f"{drawn.start} {node.seq}"]
    return "\n".join(lines) + "\n"


def expected(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def test_no_rollback_is_one_line() -> None:
    assert drawing([2, 1, 0], []) == "* 2\n* 1\n* 0\n"
    assert drawing([], []) == "\n"


def test_a_branch_that_was_left() -> None:
    assert drawing([6, 5, 4, 3, 1, 0], [(5, 1)]) == expected(
        """
        * 6
        o 5
        | * 4
        | * 3
        |/
        * 1
        * 0
        """
    )


def test_back_and_forth() -> None:
    """To 1, then to the branch that was left, then to 1 again: three branches meet there."""
    assert drawing(list(range(9, -1, -1)), [(4, 1), (6, 3), (8, 1)]) == expected(
        """
        * 9
        o 8
        | * 7
        | o 6
        | | * 5
        | | o 4
        | * | 3
        | * | 2
        |/ /
        |/
        * 1
        * 0
        """
    )


def test_lanes_that_lie_apart() -> None:
    assert drawing([8, 7, 6, 5, 4, 3, 2, 1, 0], [(3, 0), (5, 2), (7, 0)]) == expected(
        """
        * 8
        o 7
        | * 6
        | o 5
        | | * 4
        | | o 3
        | * | 2
        | * | 1
        |/ /
        |/
        * 0
        """
    )
    assert drawing([7, 6, 5, 4, 3, 2, 1, 0], [(2, 0), (4, 0), (6, 1)]) == expected(
        """
        * 7
        o 6
        | * 5
        | o 4
        | | * 3
        | | o 2
        * | | 1
        |/ /
        |/
        * 0
        """
    )


def test_what_a_filter_leaves_out_moves_no_lane() -> None:
    """The rollback is not shown, and its branch still is one."""
    assert drawing([6, 4, 0], [(5, 1)]) == "* 6\n| * 4\n|/\n* 0\n"
    assert drawing([4, 0], [(5, 1)]) == "* 4\n* 0\n"


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """State changes and rollbacks as a log can have them, and which events are shown."""
    states, rollbacks, shown = [0], [], []
    for seq in range(1, draw(st.integers(2, 30))):
        if draw(st.booleans()) and seq > 1:
            rollbacks.append((seq, draw(st.sampled_from(states))))
        else:
            states.append(seq)
        if draw(st.integers(0, 3)):
            shown.append(seq)
    return shown[::-1], rollbacks


@given(histories())
def test_every_event_stands_in_one_lane_and_lanes_meet(
    history: tuple[list[int], list[tuple[int, int]]],
) -> None:
    """Followed downwards, the lane of an event leads to what it stands on."""
    shown, rollbacks = history
    nodes = [DrawnEvent(seq) for seq in shown]
    begin = dict(rollbacks)
    parents = {seq: begin.get(seq, seq - 1) for seq in range(1, 40)}
    lane_of: dict[int, int] = {}  # seq -> the lane it is drawn in
    for node, drawn in zip(nodes, graph(nodes, rollbacks), strict=True):
        assert drawn.start.count("*") == 1
        lane_of[node.seq] = drawn.start.index("*") // 2
        for line in drawn.joins:
            assert set(line) <= set("|/_ ")
            assert "/" in line
        # So many lanes as there are branches on the way down, its own included.
        assert len(drawn.start.split()) == len({_lowest(s, node.seq, parents) for s in lane_of})


def _lowest(seq: int, floor: int, parents: dict[int, int]) -> int:
    """The last event on the way down from one that is not below `floor`."""
    while seq > floor and parents[seq] >= floor:
        seq = parents[seq]
    return seq
