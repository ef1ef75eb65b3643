"""Shapes of rooted trees: how many there are with n nodes (OEIS A000081), and which.

A tree is a tuple of parents in depth-first order: `parents[0]` is −1 for the root and every other
node comes after its parent. One tuple stands for each shape, the canonical one in which heavier
subtrees come first.
"""

from collections.abc import Iterator

from weightledger.rules.errors import RuleError

Tree = tuple[int, ...]


def count_rooted_trees(nodes: int) -> int:
    """The number of rooted trees with n ≥ 1 unlabelled nodes: 1, 1, 2, 4, 9, 20, 48, 115, …

    a(n+1) = (1/n) Σ_k (Σ_{d|k} d a(d)) a(n−k+1); Otter, Annals of Mathematics 49, 1948.
    """
    _check(nodes)
    counts = [0, 1]
    for n in range(1, nodes):
        total = sum(
            sum(d * counts[d] for d in range(1, k + 1) if k % d == 0) * counts[n - k + 1]
            for k in range(1, n + 1)
        )
        counts.append(total // n)
    return counts[nodes]


def rooted_trees(nodes: int) -> Iterator[Tree]:
    """Each shape once, from the path to the star.

    Level sequences in decreasing order; Beyer & Hedetniemi, SIAM J. Computing 9, 1980.
    """
    _check(nodes)
    levels = list(range(nodes))
    while True:
        yield _parents(levels)
        # The last node deeper than 1 moves up one level, and what follows repeats its new branch.
        moved = max((i for i, level in enumerate(levels) if level > 1), default=None)
        if moved is None:
            return
        sibling = max(i for i in range(moved) if levels[i] == levels[moved] - 1)
        for i in range(moved, nodes):
            levels[i] = levels[i - (moved - sibling)]


def path(nodes: int) -> Tree:
    """Every node the only child of the one before."""
    _check(nodes)
    return tuple(range(-1, nodes - 1))


def star(nodes: int) -> Tree:
    """A root whose children are all the other nodes."""
    _check(nodes)
    return (-1,) + (0,) * (nodes - 1)


def children(tree: Tree) -> list[list[int]]:
    """The children of each node. Raises RuleError if this is no tree in depth-first order."""
    if not tree or tree[0] != -1 or any(not 0 <= p < v for v, p in enumerate(tree[1:], 1)):
        raise RuleError(f"a tree is -1 and then a parent before each node, got {tree}")
    found: list[list[int]] = [[] for _ in tree]
    for node, parent in enumerate(tree[1:], 1):
        found[parent].append(node)
    return found


def _parents(levels: list[int]) -> Tree:
    """A node's parent is the last node before it that is one level higher."""
    last: dict[int, int] = {-1: -1}
    parents = []
    for node, level in enumerate(levels):
        parents.append(last[level - 1])
        last[level] = node
    return tuple(parents)


def _check(nodes: int) -> None:
    if nodes < 1:
        raise RuleError(f"a rooted tree has at least one node, got {nodes}")
