"""Tokens to text as they come, up to the first stop string. Knows tokenizers by `decode`, and nothing of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder gives for a character whose last bytes are still to come


class Detokenizer:
    """Turns tokens into pieces of text that join to the decoding of them all.

    The tokens of the last piece are decoded again with the new ones, since what a token says depends on what it
    follows; the others are not, so that a long answer costs no more a token than a short one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.known, self.said = 0, 0  # tokens decoded as context, and tokens whose text has been given

    def push(self, token: int) -> str:
        """Returns the text that a token adds; empty while a character is unfinished."""
        self.ids.append(token)
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        if text:
            self.known, self.said = self.said, len(self.ids)
        return text

    def finish(self) -> str:
        """Returns the text that was held back."""
        return self._new_text()

    def text_of(self, token: int) -> str:
        """Decodes a token as it would be read here; by itself, where an unfinished character comes before it."""
        context = self.ids[self.known :]
        before = self._decode(context)
        if before.endswith(UNFINISHED):
            context = self.ids[self.known : self.said]
            before = self._decode(context)
        return self._decode([*context, token])[len(before) :]

    def _new_text(self) -> str:
        before = self._decode(self.ids[self.known : self.said])
        return self._decode(self.ids[self.known :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class StopFilter:
    """Passes text on up to the first stop string.

    Text that may turn out to be the beginning of a stop string is held back, so that no part of one is passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.longest = max(map(len, self.stops), default=1)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Returns the text that is safe to pass on; nothing more once a stop string was met."""
        if self.stopped:
            return ""
        self.held += piece
        cut = min((self.held.find(stop) for stop in self.stops if stop in self.held), default=None)
        if cut is not None:
            self.stopped = True
            return self.held[:cut]
        longest = min(self.longest - 1, len(self.held))
        keep = next((n for n in range(longest, 0, -1) if self._may_begin(self.held[-n:])), 0)
        passed, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return passed

    def finish(self) -> str:
        """Returns what was held back, since no stop string will come of it any more."""
        return "" if self.stopped else self.held

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Passes text on up to the first stop string, as `StopFilter` does.

    Args:
        pieces: Text in any cuts.
        stops: The stop strings.
    """
    stop = StopFilter(stops)
    for piece in pieces:
        if passed := stop.push(piece):
            yield passed
        if stop.stopped:
            return
    if rest := stop.finish():
        yield rest
