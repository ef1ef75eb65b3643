"""Ending a text at a stop string, wherever the pieces it comes in are cut."""

from collections.abc import Sequence


class Stops:
    """Passes text on up to the first stop string that is complete; `reached` says one was.

    What might be the start of a stop string is held back until the next piece decides. The result
    depends on the text only, not on its pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def add(self, piece: str) -> str:
        """What of the text so far may be shown now."""
        self._held += piece
        found = [
            (self._held.index(stop) + len(stop), self._held.index(stop))
            for stop in self._stops
            if stop in self._held
        ]
        if found:
            self.reached = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        return self._release(len(self._held) - self._open())

    def finish(self) -> str:
        """The rest, when no more text comes."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _open(self) -> int:
        """Length of the longest end of the text that a stop string starts with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0


class LastWords:
    """Texts after which a generation ends, and which stay in it; `before` is the prompt's text.

    As transformers has its `stop_strings`: one may begin in the prompt, and what the token that
    completes it says beyond is kept too.
    """

    def __init__(self, words: Sequence[str], before: str) -> None:
        self._words = words
        self._longest = max(map(len, words), default=1)
        self._tail = self._end_of(before)

    def end_with(self, piece: str) -> bool:
        """Whether this piece of text completes one of them."""
        if not piece or not self._words:
            return False
        known, text = len(self._tail), self._tail + piece
        self._tail = self._end_of(text)
        return any(text.rfind(word) + len(word) > known for word in self._words if word in text)

    def _end_of(self, text: str) -> str:
        return text[len(text) - self._longest + 1 :] if len(text) >= self._longest else text
