"""Text that comes in pieces: whole characters, and an end at a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text_models import metaspace_tokenizer, tokenizer
from weightledger.ledger.engines.transformers.stops import LastWords, Stops
from weightledger.ledger.engines.transformers.tokens import Decoder

few = st.text("abc", min_size=1, max_size=4)
TOKENIZER = tokenizer()
TOKENIZERS = [TOKENIZER, metaspace_tokenizer(), metaspace_tokenizer(llama2=True)]


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


@pytest.mark.parametrize("number", range(3), ids=["byte-level", "metaspace", "llama-2"])
@given(prompt=st.lists(st.integers(0, 370), max_size=12), data=st.data())
def test_a_continuation_is_what_follows_the_prompts_text_in_the_text_of_both(
    number: int, prompt: list[int], data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, 370), max_size=25))

    def decode(ids: list[int]) -> str:
        text: str = TOKENIZERS[number].decode(ids, skip_special_tokens=True)
        return text

    decoder = Decoder(decode, prompt)
    shown = "".join(map(decoder.add, tokens)) + decoder.finish()
    known, whole = decode(prompt), decode(prompt + tokens)
    # A prompt that ends inside of a character has no text of its own there.
    known = known if whole.startswith(known) else known.rstrip("\ufffd")
    assert shown == whole[len(known) :]


def test_the_first_word_keeps_its_space() -> None:
    for one in TOKENIZERS:
        prompt, both = (one(text)["input_ids"] for text in ("the quick", "the quick brown fox"))
        assert both[: len(prompt)] == prompt
        decoder = Decoder(one.decode, prompt)
        assert "".join(map(decoder.add, both[len(prompt) :])) == " brown fox"


@given(st.text("ab", max_size=6), st.lists(st.text("ab", max_size=3), max_size=8))
def test_last_words_end_with_the_piece_that_completes_them(before: str, pieces: list[str]) -> None:
    words, text = ["aba", "bb"], before
    last = LastWords(words, before)
    for piece in pieces:
        known, text = len(text), text + piece
        ended = any(text.find(word, max(0, known - len(word) + 1)) >= 0 for word in words)
        assert last.end_with(piece) == (ended and bool(piece))
