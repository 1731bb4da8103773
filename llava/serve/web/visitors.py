"""What the page remembers of its visitors, in bounded memory: the oldest goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

MAX_VISITORS = 64
"""Visitors whose pictures are kept by default."""
MAX_REMEMBERED = 4096
"""Visitors of whom a short note is kept, such as their last vote."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(OrderedDict[Key, Value]):
    """A dict that keeps the entries that were set last, at most `most`."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)


class PictureHolders:
    """The visitors whose pictures are kept; beyond `most` of them, the one idle longest is dropped.

    Gradio bounds the number of all sessions, also of those without a picture: requests that come without a browser
    make one each, and would evict real visitors.
    """

    def __init__(self, most: int = MAX_VISITORS) -> None:
        self.most = most
        self.drop: list[Callable[[str], object]] = []
        """Called with the hash of a dropped visitor's session."""
        self._visitors: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def hold(self, visitor: str | None) -> None:
        """Notes that a visitor has a picture, and is not idle; a request without a session, None, keeps nothing."""
        if visitor is None:
            return
        with self._lock:
            self._visitors[visitor] = None
            self._visitors.move_to_end(visitor)
            beyond = len(self._visitors) - self.most
            dropped = [self._visitors.popitem(last=False)[0] for _ in range(beyond)]
        for oldest in dropped:
            for drop in self.drop:
                drop(oldest)

    def forget(self, visitor: str | None) -> None:
        """Notes that a visitor has left."""
        with self._lock:
            self._visitors.pop(visitor, None)  # type: ignore[call-overload]
