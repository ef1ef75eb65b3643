"""The path finder against brute force over random trees."""

from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.events import ROLLED_BACK, UPDATED
from weightledger.ledger.history.lineage import Lineage, Path, cheapest, within
from weightledger.ledger.store import StateChange


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[StateChange], list[int]]:
    """A log of updates and rollbacks: its steps, and the nodes there are."""
    steps = [StateChange(0, "registered", 0, None, 0)]
    nodes = [0]
    at = 0
    for seq in range(1, draw(st.integers(2, 40))):
        if draw(st.booleans()) or seq == 1:
            size = draw(st.integers(0, 50))
            steps.append(StateChange(seq, UPDATED, seq, at, size))
            nodes.append(seq)
            at = seq
        else:
            at = draw(st.sampled_from(nodes))
            steps.append(StateChange(seq, ROLLED_BACK, at, seq - 1, 0))
    return steps, nodes


def lineage_of(steps: list[StateChange]) -> Lineage:
    return Lineage(lambda start, stop: [s for s in steps if start <= s.seq < stop], event_cost=0)


def brute_force(steps: list[StateChange], starts: dict[int, int], target: int) -> int:
    """Fewest bytes to reach `target`, by relaxing every edge both ways until nothing moves."""
    best = dict(starts)
    edges = [(s.node, s.parent, s.size) for s in steps if s.node == s.seq and s.parent is not None]
    moved = True
    while moved:
        moved = False
        for child, parent, size in edges:
            for a, b in ((child, parent), (parent, child)):
                if a in best and best[a] + size < best.get(b, 1 << 60):
                    best[b] = best[a] + size
                    moved = True
    return best[target]


def walk(lineage: Lineage, path: Path, sizes: dict[int, int]) -> int:
    """Follow a path, checking that each step applies where the last one ended; gives its end."""
    at = path.start
    for seq in path.undo:
        assert seq == at
        at = lineage.parent(seq)
    for seq in path.redo:
        assert lineage.parent(seq) == at
        at = seq
    return at


@given(trees(), st.data())
def test_the_cheapest_path_reads_the_fewest_bytes(tree, data) -> None:
    steps, nodes = tree
    target = data.draw(st.sampled_from(nodes))
    anchors = data.draw(st.lists(st.sampled_from(nodes), max_size=3, unique=True))
    starts = dict.fromkeys(anchors, 60)
    starts[data.draw(st.sampled_from(nodes))] = 0
    lineage = lineage_of(steps)
    path = cheapest(lineage, starts, target)
    sizes = {s.seq: s.size for s in steps}
    assert walk(lineage, path, sizes) == target
    spent = starts[path.start] + sum(sizes[seq] for seq in (*path.undo, *path.redo))
    assert path.size == spent == brute_force(steps, starts, target)


@given(trees(), st.data())
def test_what_is_within_a_limit_is_the_cheapest_path(tree, data) -> None:
    steps, nodes = tree
    start, target = (data.draw(st.sampled_from(nodes)) for _ in range(2))
    limit = data.draw(st.integers(0, 300))
    lineage = lineage_of(steps)
    least = cheapest(lineage, {start: 0}, target)
    assert within(lineage, start, target, limit) == (least if least.size < limit else None)


def test_a_node_appended_after_a_page_was_read_is_found() -> None:
    steps = [StateChange(0, "registered", 0, None, 0)]
    lineage = lineage_of(steps)
    assert lineage.parent(0) is None
    steps.append(StateChange(1, UPDATED, 1, 0, 7))
    assert (lineage.parent(1), lineage.size(1)) == (0, 7)


def test_a_state_on_a_young_branch_is_not_reached_across_the_old_one() -> None:
    """Anchors near by seq stand on the branch that was left; the way from them is the history."""
    last = 20_000
    steps = [StateChange(0, "registered", 0, None, 0)]
    steps += [StateChange(seq, UPDATED, seq, seq - 1, 1) for seq in range(1, last)]
    steps += [
        StateChange(last, ROLLED_BACK, 5, last - 1, 0),
        StateChange(last + 1, UPDATED, last + 1, 5, 1),
    ]
    loaded: list[int] = []

    def load(start: int, stop: int) -> list[StateChange]:
        loaded.extend(step.seq for step in steps[start:stop])
        return steps[start:stop]

    anchors = dict.fromkeys(range(0, last, 10), 100) | {5: 100}
    path = cheapest(Lineage(load), anchors, last + 1)
    assert path.start == 5
    assert (path.undo, path.redo) == ((), (last + 1,))
    assert len(loaded) < 2_000


def test_only_what_came_since_is_read_again() -> None:
    steps = [StateChange(0, "registered", 0, None, 0)]
    loaded: list[int] = []

    def load(start: int, stop: int) -> list[StateChange]:
        loaded.extend(step.seq for step in steps[start:stop])
        return steps[start:stop]

    lineage = Lineage(load)
    for seq in range(1, 30):
        steps.append(StateChange(seq, UPDATED, seq, seq - 1, 1))
        assert lineage.parent(seq) == seq - 1
    assert loaded == list(range(30))


@given(trees(), st.data())
def test_a_straight_way_is_one_from_each_node_to_the_next(
    tree: tuple[list[StateChange], list[int]], data: st.DataObject
) -> None:
    steps, nodes = tree
    lineage = lineage_of(steps)
    start, node = sorted([data.draw(st.sampled_from(nodes)), data.draw(st.sampled_from(nodes))])
    assert lineage.straight(start, node) is None, "nothing is known yet"
    lineage.parent(nodes[-1])
    between = [step for step in steps if step.node == step.seq and start < step.seq <= node]
    befores = [start, *(step.seq for step in between)]
    is_straight = all(
        step.parent == before for step, before in zip(between, befores[:-1], strict=True)
    )
    size = sum(step.size for step in between)
    assert lineage.straight(start, node) == (size if is_straight else None)


def test_a_straight_way_goes_through_pages() -> None:
    steps = [StateChange(seq, UPDATED, seq, seq - 1 if seq else None, 3) for seq in range(1500)]
    lineage = lineage_of(steps)
    lineage.learn(steps[1400])
    for seq in (0, 1100):
        assert lineage.straight(10, 1400) is None, "some between are not known"
        lineage.parent(seq)
    lineage.parent(600)
    assert lineage.straight(10, 1400) == 3 * 1390
    assert lineage.straight(511, 512) == lineage.straight(1023, 1024) == 3
    assert lineage.straight(700, 700) == 0
