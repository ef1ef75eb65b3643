"""A name stands once in an object, wherever it stands and however it is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weightledger.api.cli.importing import _read
from weightledger.api.cli.learning import read
from weightledger.api.cli.writing import parse_json
from weightledger.api.server.sources import FlagError
from weightledger.ledger import json_text
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.json_text import RepeatedName

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def twice(value: object) -> str:
    """A text with one object in which a name stands twice: spelled out, and escaped."""
    return f'{{"naïve": 1, "x": {json.dumps(value)}, "na\\u00efve": 1}}'


@settings(max_examples=60, derandomize=True)
@given(values)
def test_it_is_found_wherever_it_stands_and_nothing_else_is(value: object) -> None:
    text = json.dumps(value)
    json_text.require_names_once(text)
    assert repr(json_text.loads(text)) == repr(json.loads(text))
    for around in ("%s", "[1, %s]", '{"a": {"b": [[%s]]}}'):
        bad = around.replace("%s", twice(value))
        for check in (json_text.loads, json_text.require_names_once):
            with pytest.raises(RepeatedName) as raised:
                check(bad.encode())
            assert raised.value.name == "naïve"


names = st.sampled_from(["a", "a\\", 'a"', ":", "\u2200"])
repeating = st.recursive(
    st.integers() | names.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda of: f"[{', '.join(map(str, of))}]")
        | st.lists(
            st.tuples(names, st.booleans(), st.sampled_from(["", " ", "\n\t"]), inner), max_size=3
        ).map(
            lambda of: (
                "{"
                + ",".join(f"{json.dumps(n, ensure_ascii=a)}{gap}:{v}" for n, a, gap, v in of)
                + "}"
            )
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, derandomize=True)
@example('{"a": 1, "a": 2}', 1, "utf-16-le")
@given(repeating, st.integers(0, 40), st.sampled_from(["utf-8", "utf-16-le", "utf-16", "utf-32"]))
def test_the_quick_look_at_bytes_says_what_reading_them_says(
    text: object, cut: int, encoding: str
) -> None:
    """Text is always read: only of bytes, such as bodies, quotes alone may tell."""
    for sent in (str(text), str(text)[: len(str(text)) - cut]):
        assert _repeated(sent.encode(encoding)) == _repeated(sent), sent


def _repeated(text: str | bytes) -> str | None:
    try:
        json_text.require_names_once(text)
    except RepeatedName as error:
        return error.name
    return None


def test_names_of_several_objects_may_be_the_same() -> None:
    json_text.require_names_once('[{"a": {"a": ":"}}, {"a": "a"}]')


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"a": 1e5000, "b": 1}'])
def test_of_a_text_that_cannot_be_read_others_say_what_is_wrong(text: str) -> None:
    json_text.require_names_once(text)


def test_a_number_may_be_longer_than_python_reads() -> None:
    with pytest.raises(RepeatedName):
        json_text.require_names_once('{"a": ' + "1" * 5000 + ', "a": 1}')


def test_options_and_files_of_commands_are_read_so_too(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"--metadata takes JSON.*'a' stands more than once"):
        parse_json("--metadata", '{"a": 1, "a": 2}')
    with pytest.raises(FlagError, match="--data takes JSON"):
        parse_json("--data", "[" * 100_000)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"x": [1], "x": [2]}\n')
    with pytest.raises(InvalidRequest, match="'x' stands more than once"):
        read(rows)


@pytest.mark.parametrize("reader", [read, _read])
def test_a_file_that_has_a_tensor_twice_is_refused(reader, tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    file = tmp_path / "weights.safetensors"
    for header, refused in ((f'{{"x":{entry}}}', False), (f'{{"x":{entry},"x":{entry}}}', True)):
        data = len(header).to_bytes(8, "little") + header.encode() + np.float32(1).tobytes()
        file.write_bytes(data)
        if refused:
            with pytest.raises(InvalidRequest, match="'x' stands more than once"):
                reader(file)
        else:
            assert list(reader(file)) == ["x"]
