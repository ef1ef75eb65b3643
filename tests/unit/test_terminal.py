"""What strangers wrote, printed: nothing a terminal or a spreadsheet obeys comes through."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightledger.api.cli import output
from weightledger.api.cli.moments import moment
from weightledger.api.plain_text import cell, plain
from weightledger.api.server.sources import FlagError

TEXTS = st.text() | st.sampled_from(
    ["\x1b]0;owned\x07", "=cmd|'/c calc'!A0", "+1", "-1", "@x", "\t=1", "\u202eevil", "a\r\nb"]
)


@given(TEXTS)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable() or all(
        not one.isprintable() and ord(one) > 0x9F for one in shown if not one.isprintable()
    )
    for one in shown:
        assert ord(one) >= 0x20 and not 0x7F <= ord(one) <= 0x9F
        assert one not in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u2028\u2029\ufeff"
    shown.encode()
    if text.isascii() and text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    "text",
    [
        "👩\u200d👩\u200d👧 and 🏳️\u200d🌈",
        "🐈\u200d⬛ and 🙂\u200d↔️",
        "می\u200cخواهم",
        "क्\u200dष and क्\u200cष",
    ],
)
def test_what_joins_letters_and_pictures_is_left_to_them(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize(
    "text", ["an{}na", "{}anna", "anna{}", "а{}нна", "{}{}", "9{}1", "💥{0}{0}💥"]
)
@pytest.mark.parametrize("mark", ["\u200c", "\u200d"])
def test_what_joins_nothing_hides_nothing(text: str, mark: str) -> None:
    assert plain(text.replace("{0}", "{}").replace("{}", mark)).isprintable()


@given(TEXTS)
def test_no_cell_is_a_formula(text: str) -> None:
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(text=TEXTS, form=st.sampled_from(["table", "csv", "json", "quiet", "facts"]))
def test_every_way_to_print_is_safe(text: str, form: str) -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        if form == "facts":
            output.facts({text: text, "a": {text: [{text: text}, text]}}, as_json=False)
        else:
            output.listing(
                [{"id": text, "n": -1.5}],
                ("id", "n"),
                id_key="id",
                as_json=form == "json",
                as_csv=form == "csv",
                quiet=form == "quiet",
            )
    said = out.getvalue()
    assert not {one for one in said if (ord(one) < 0x20 and one not in "\r\n") or ord(one) == 0x7F}
    assert "\u202e" not in said
    if form == "json":
        assert json.loads(said)[0]["id"] == text
    if form == "csv":
        assert list(csv.reader(io.StringIO(said)))[1] == [cell(text), "-1.5"]


NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("1h", "2026-03-04T04:06:07Z"),
        ("90m", "2026-03-04T03:36:07Z"),
        ("2d", "2026-03-02T05:06:07Z"),
        ("1w ago", "2026-02-25T05:06:07Z"),
        ("yesterday", "2026-03-03T00:00:00Z"),
        ("today", "2026-03-04T00:00:00Z"),
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02T03:04:05+02:00", "2026-01-02T03:04:05+02:00"),
        (None, None),
    ],
)
def test_times_as_people_say_them(text: str | None, iso: str | None) -> None:
    assert moment("--since", text, NOW) == iso


@pytest.mark.parametrize("text", ["", "tomorrow", "1y", "h", "999999w", "-1h", "1.5h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(FlagError, match="--since takes 30m, 1h, 2d, yesterday or a time"):
        moment("--since", text, NOW)


def test_what_is_listed_begins_with_whose_it_is_and_has_no_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = {"after": "aa", "before": None, "operand": {"dtype": "float32"}, "parameter": "2.bias"}
    output.facts({"updates": [one]}, as_json=False)
    shown = capsys.readouterr().out
    assert "  - parameter 2.bias, after aa, before -, operand (dtype float32)\n" in shown
