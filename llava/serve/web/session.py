"""A visitor's session, its picture and its drawings.

A session is immutable: events replace it, so that two events at the same time cannot interfere.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image

from llava.images import ImageError, read_image
from llava.serve.decoding.pool import shared_decoders
from llava.serve.engine.prompting import Turn
from llava.serve.web.toasts import as_html

MAX_PIXELS = 8_000_000
"""Larger pictures are reduced to this size, since all are kept in memory; towers take at most 3.2 million pixels."""

Messages = list[dict[str, str]]
"""Messages in the format of Gradio's chatbot."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str = ""
    """The text so far."""


@dataclass(frozen=True)
class Session:
    """A picture and the conversation about it."""

    picture: Image.Image | None = None
    source: str | None = None
    """The uploaded file that was opened last, even if it was no picture."""
    exchanges: tuple[Exchange, ...] = ()

    def with_answer(self, question: str, answer: str) -> Session:
        """Copies the session with one more exchange."""
        return replace(self, exchanges=(*self.exchanges, Exchange(question, answer)))

    def without_last(self) -> Session:
        """Copies the session without its last exchange."""
        return replace(self, exchanges=self.exchanges[:-1])

    def turns(self, question: str) -> list[Turn]:
        """Lists the turns of the conversation and a new question; the first one has the picture.

        Exchanges without an answer are left out.
        """
        turns: list[Turn] = []
        for exchange in self.exchanges:
            if exchange.answer:
                turns += [Turn("user", exchange.question), Turn("assistant", exchange.answer)]
        turns.append(Turn("user", question))
        images = () if self.picture is None else (self.picture,)
        return [replace(turns[0], images=images), *turns[1:]]

    def messages(self) -> Messages:
        """Converts the conversation to a chatbot's messages, as HTML that shows each text literally."""
        both = [(("user", exchange.question), ("assistant", exchange.answer)) for exchange in self.exchanges]
        return [{"role": role, "content": as_html(text)} for pair in both for role, text in pair if text]


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """Finds the file of an upload.

    Raises:
        ImageError: the file was not uploaded; a request can name any path of this machine.
    """
    path = Path(str(upload.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError("it was not uploaded")
    return path


def open_upload(upload: Mapping[str, Any]) -> Image.Image:
    """Opens an uploaded picture within the limits for untrusted files.

    Raises:
        ImageError: the file was not uploaded, cannot be read, is no picture, or exceeds the limits.
    """
    picture = shared_decoders().decode(read_image(uploaded_file(upload)))
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / pixels)
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def save_drawing(drawing: Image.Image) -> str:
    """Writes a drawing to Gradio's folder of files for browsers, which Gradio cleans up, and returns its path.

    Each drawing gets a separate folder with a random name: under a name made from its content, it could be written
    again for one visitor while another's browser reads it.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(32)
    folder.mkdir(parents=True)
    path = folder / "view.webp"
    drawing.save(path, quality=85, method=2)
    return str(path)
