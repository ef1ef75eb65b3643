"""Which events were pruned, by ranges of seqs."""

from hypothesis import given
from hypothesis import strategies as st

from weightledger.ledger.history.pruning import NOTHING_PRUNED, barring


@given(st.sets(st.integers(0, 30)), st.integers(-1, 31), st.integers(0, 9))
def test_what_lies_between_is_what_any_seq_says(seqs: set[int], start: int, count: int) -> None:
    stop = start + count
    pruned = barring(NOTHING_PRUNED, sorted(seqs))
    assert [seq for seq in range(31) if pruned(seq)] == sorted(seqs)
    between = any(pruned(seq) for seq in range(start + 1, stop + 1))
    assert pruned.any_between(start, stop) is between
