"""Decodes tokens to text as they are generated, and cuts the text at the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

UNFINISHED = "\ufffd"  # decoders return it for a character whose last bytes are missing


class Detokenizer:
    """Turns tokens into pieces of text that join to the decoding of all tokens.

    Each step decodes the last piece's tokens again together with the new ones, since the text of a token depends on
    the tokens before it. Earlier tokens are not decoded again, so the cost per token does not grow with the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        # ids[prefix:read] is the context, ids[:read] are the tokens whose text has been returned.
        self.prefix, self.read = 0, 0

    def push(self, token: int) -> str:
        """Appends a token and decodes the text that it adds; empty while a character is unfinished."""
        self.ids.append(token)
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        if text:
            self.prefix, self.read = self.read, len(self.ids)
        return text

    def finish(self) -> str:
        """Decodes the text that was held back."""
        return self._new_text()

    def text_of(self, token: int) -> str:
        """Decodes a token as if it came next; without the unfinished character before it, if there is one."""
        context = self.ids[self.prefix :]
        before = self._decode(context)
        if before.endswith(UNFINISHED):
            # Where nothing else is before it, a letter: at the start of a text, decoders drop a token's blank.
            context = self.ids[self.prefix : self.read] or list(self.tokenizer("a").input_ids[-1:])
            before = self._decode(context)
        return self._decode([*context, token])[len(before) :]

    def _new_text(self) -> str:
        before = self._decode(self.ids[self.prefix : self.read])
        return self._decode(self.ids[self.prefix :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class StopFilter:
    """Passes text through up to the first stop string.

    Text that may be the start of a stop string is held back, so that no part of one is ever returned.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.longest = max(map(len, self.stops), default=1)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Adds a piece and returns the text that is certain; empty after a stop string."""
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
        """Flushes the text that was held back, at the end of the answer."""
        return "" if self.stopped else self.held

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields text up to the first stop string, see `StopFilter`.

    Args:
        pieces: Text, split anywhere.
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
