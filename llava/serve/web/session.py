"""A visitor's session, its picture and its drawings.

A session is immutable: events replace it, so that two events at the same time cannot interfere.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image

from llava.images import ImageError, read_image
from llava.serve.decoding.pool import shared_decoders
from llava.serve.engine.params import SERVER_DEFAULTS, QLIPOptions
from llava.serve.engine.prompting import Turn
from llava.serve.web.markdown import render_answer
from llava.serve.web.toasts import as_html

MAX_PIXELS = 8_000_000
"""Larger pictures are reduced to this size, since all are kept in memory; towers take at most 3.2 million pixels."""

Messages = list[dict[str, str]]
"""Messages in the format of Gradio's chatbot."""

WAITING, STOPPED, BROKEN_OFF, CUT = "…", "stopped", "broken off", "cut at the longest answer"
"""Marks of an answer that has not come yet, or not whole."""

MAX_NAME = 40  # characters of a file's name in a message

MAX_PICTURES = 8
"""Pictures of a conversation; all are kept in memory."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str = ""
    """The text so far."""
    pictures: tuple[Image.Image, ...] = ()
    """Pictures that were added with the question."""
    options: QLIPOptions = SERVER_DEFAULTS
    """How the pictures were cut for the answer."""
    mark: str = ""
    """What the page shows behind the answer; empty where it is whole, or grows."""

    @cached_property
    def _answer_html(self) -> str:
        """The answer on the page; rendered once, since every piece of a later answer sends the conversation again."""
        return render_answer(self.answer, self.mark)

    def texts(self) -> tuple[str, str]:
        """Lists question and answer."""
        return self.question, self.answer

    def messages(self) -> Messages:
        """Converts the exchange to messages: the question, and the answer with its mark once there is either."""
        said = (("user", as_html(self.question)), ("assistant", self._answer_html))
        return [{"role": role, "content": text} for role, text in said if text]


@dataclass(frozen=True)
class Session:
    """A picture, those added to it later, and the conversation about them."""

    picture: Image.Image | None = None
    source: str | None = None
    """The uploaded file that was opened last, even if it was not a picture."""
    exchanges: tuple[Exchange, ...] = ()
    pending: tuple[Image.Image, ...] = ()
    """Pictures that go with the next question."""

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """All pictures, in the order in which the model gets them."""
        first = () if self.picture is None else (self.picture,)
        return (*first, *(picture for exchange in self.exchanges for picture in exchange.pictures), *self.pending)

    @property
    def asked_pictures(self) -> tuple[Image.Image, ...]:
        """The pictures of the last question and those before."""
        return self.pictures[: len(self.pictures) - len(self.pending)]

    @property
    def last_question(self) -> str:
        """The last exchange's question; empty if there is no exchange."""
        return self.exchanges[-1].question if self.exchanges else ""

    @property
    def last_answer(self) -> str | None:
        """The last exchange's answer; None if there is no exchange, or it has no text."""
        return (self.exchanges[-1].answer or None) if self.exchanges else None

    def with_picture(self, picture: Image.Image) -> Session:
        """Copies the session with one more picture for the next question."""
        return replace(self, pending=(*self.pending, picture))

    def without_picture(self, number: int) -> Session:
        """Copies the session without one of the pictures for the next question, by its number among all, from 1."""
        place = number - 1 - len(self.asked_pictures)
        return replace(self, pending=self.pending[:place] + self.pending[place + 1 :])

    def with_answer(
        self, question: str, answer: str, options: QLIPOptions = SERVER_DEFAULTS, mark: str = ""
    ) -> Session:
        """Copies the session with one more exchange."""
        exchange = Exchange(question, answer, self.pending, options, mark)
        return replace(self, exchanges=(*self.exchanges, exchange), pending=())

    def with_mark(self, mark: str) -> Session:
        """Copies the session with another mark at its last answer."""
        return replace(self, exchanges=(*self.exchanges[:-1], replace(self.exchanges[-1], mark=mark)))

    def without_last(self) -> Session:
        """Copies the session without its last exchange; the pictures of that go with the next question again."""
        return replace(self, exchanges=self.exchanges[:-1], pending=self.exchanges[-1].pictures + self.pending)

    def without_talk(self) -> Session:
        """Copies the session without its exchanges; all pictures go with the next question."""
        return replace(self, exchanges=(), pending=self.pictures[1:])

    def turns(self, question: str) -> list[Turn]:
        """Lists the turns of the conversation and a new question, each with the pictures that were added with it.

        Exchanges without an answer are left out; their pictures go with the question after them.
        """
        turns: list[Turn] = []
        images = () if self.picture is None else (self.picture,)
        for exchange in self.exchanges:
            images += exchange.pictures
            if exchange.answer:
                turns += [Turn("user", exchange.question, images), Turn("assistant", exchange.answer)]
                images = ()
        return [*turns, Turn("user", question, images + self.pending)]

    def exchange_of(self, message: int) -> int:
        """Finds the number of the exchange that a chatbot's message belongs to.

        Raises:
            LookupError: there is no such message.
        """
        owners = [number for number, exchange in enumerate(self.exchanges) for _ in exchange.messages()]
        if not 0 <= message < len(owners):
            raise LookupError(f"no message {message}")
        return owners[message]

    def messages(self) -> Messages:
        """Converts the conversation to a chatbot's messages, HTML that shows questions literally, answers rendered."""
        return [message for exchange in self.exchanges for message in exchange.messages()]


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """Finds the file of an upload.

    Raises:
        ImageError: the file was not uploaded; a request can name any path of this machine.
    """
    path = Path(str(upload.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError("it was not uploaded")
    return path


def file_name(upload: Mapping[str, Any]) -> str:
    """Reads the name that an upload had on the visitor's machine, shortened; as text that may hold HTML."""
    name = str(upload.get("orig_name") or "A file")
    return name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"


def open_upload(upload: Mapping[str, Any]) -> Image.Image:
    """Opens an uploaded picture within the limits for untrusted files.

    Raises:
        ImageError: the file was not uploaded, cannot be read, is not a picture, or exceeds the limits.
    """
    return shared_decoders().decode(read_image(uploaded_file(upload)), fit=fit_memory)


def fit_memory(width: int, height: int) -> tuple[int, int]:
    """Scales a picture's size down to `MAX_PIXELS`, if it has more; its decoder process resizes it."""
    scale = min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def save_drawing(drawing: Image.Image) -> str:
    """Writes a drawing to Gradio's folder of files for browsers, which Gradio cleans up, and returns its path.

    Each drawing gets a separate folder with a random name: under a name made from its content, it could be written
    again for one visitor while another's browser reads it.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(32)
    folder.mkdir(parents=True)
    path = folder / "what-the-model-sees.png"
    drawing.save(path, compress_level=4)
    return str(path)
