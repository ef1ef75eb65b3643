"""Texts that strangers may have written, made safe to print.

What a terminal or a spreadsheet would obey instead of show, it is shown.
"""

import re

# C0 and C1 controls and DEL move the cursor, rename the window, or feed the keyboard; the others
# are Unicode's marks that reorder or hide what stands beside them.
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
    # Two of them only choose the shape of letters that they join or part, in Arabic's, Syriac's and
    # India's scripts, and make one picture of several: elsewhere they are hidden, and shown.
    "|(?<![\u0620-\u08ff\u0900-\u0dff])\u200c|\u200c(?![\u0620-\u08ff\u0900-\u0dff])"
    "|(?<![\u0620-\u08ff\u0900-\u0dff\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d"
    # Of what is joined to a picture some is older than those: arrows, a black square.
    "|\u200d(?![\u0620-\u08ff\u0900-\u0dff\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff])"
)

# A cell that begins so is a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain(text: str) -> str:
    """A text on one line, with everything a terminal would obey written as an escape."""
    return _OBEYED.sub(lambda mark: mark[0].encode("unicode_escape").decode(), text)


def cell(text: str) -> str:
    """A text for CSV: `plain`, and no spreadsheet takes it for a formula."""
    safe = plain(text)
    return f"'{safe}" if text.startswith(_FORMULA) else safe
