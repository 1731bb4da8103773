"""What tests with a browser share: the page's examples and suggestions, and a function that can be held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION

FILES = [str(path) for path in demo_picture_paths()]
FOLLOWING = "How many objects are there?"
THIRD = "What shape is the purple object?"
QUESTIONS = [QUESTION, FOLLOWING, THIRD]


class Held:
    """A function that waits, once it has been closed, until it is opened again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.opened = function, threading.Event()
        self.opened.set()

    def __call__(self, *arguments: Any) -> Any:
        assert self.opened.wait(600)
        return self.function(*arguments)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.opened.clear()
        try:
            yield
        finally:
            self.opened.set()
