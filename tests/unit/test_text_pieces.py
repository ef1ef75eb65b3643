"""Text that comes in pieces: whole characters, and an end at a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from tests.text_models import tokenizer
from weightledger.ledger.engines.transformers.stops import Stops
from weightledger.ledger.engines.transformers.tokens import Decoder

few = st.text("abc", min_size=1, max_size=4)
TOKENIZER = tokenizer()


def through(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    passing = Stops(stops)
    shown = ""
    for piece in pieces:
        shown += passing.add(piece)
        if passing.reached:
            return shown, True
    return shown + passing.finish(), False


@given(st.lists(few, max_size=3), st.lists(st.text("abc", max_size=5), max_size=8))
def test_pieces_make_no_difference_to_where_the_text_ends(
    stops: list[str], pieces: list[str]
) -> None:
    text = "".join(pieces)
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert through(stops, pieces) == expected
    assert through(stops, list(text)) == expected
    assert through(stops, [text]) == expected


def test_only_what_may_become_a_stop_is_held_back() -> None:
    passing = Stops(["END", "xy"])
    assert passing.add("the E") == "the "
    assert passing.add("N") == ""
    assert passing.add("x") == "EN"
    assert passing.add("z!") == "xz!"
    assert not passing.reached


@given(st.lists(st.integers(0, 383), max_size=40))
def test_text_in_pieces_is_the_text_of_all_tokens(tokens: list[int]) -> None:
    def decode(ids: list[int]) -> str:
        return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    decoder = Decoder(decode)
    pieces = [decoder.add(token) for token in tokens]
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + decoder.finish() == decode(tokens)
