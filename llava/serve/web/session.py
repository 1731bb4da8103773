"""What the demo remembers about one visitor, how an upload becomes that visitor's picture, where drawings are kept.

Knows no model and no page. A session is never changed, only replaced, so that two events cannot trip over each other.
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
"""Larger pictures are kept at this size, since each visitor's is held in memory. A tower takes at most 3.2 million."""

Messages = list[dict[str, str]]
"""What a chatbot shows."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str = ""
    """What has come so far."""


@dataclass(frozen=True)
class Session:
    """A picture and the conversation about it."""

    picture: Image.Image | None = None
    source: str | None = None
    """The uploaded file that was opened last, be it that it was no picture."""
    exchanges: tuple[Exchange, ...] = ()

    def with_answer(self, question: str, answer: str) -> Session:
        """Returns the session with one exchange more."""
        return replace(self, exchanges=(*self.exchanges, Exchange(question, answer)))

    def without_last(self) -> Session:
        """Returns the session with one exchange less."""
        return replace(self, exchanges=self.exchanges[:-1])

    def turns(self, question: str) -> list[Turn]:
        """Returns the conversation that ends with a question; the first turn shows the picture.

        Exchanges whose answer never came are left out.
        """
        turns: list[Turn] = []
        for exchange in self.exchanges:
            if exchange.answer:
                turns += [Turn("user", exchange.question), Turn("assistant", exchange.answer)]
        turns.append(Turn("user", question))
        images = () if self.picture is None else (self.picture,)
        return [replace(turns[0], images=images), *turns[1:]]

    def messages(self) -> Messages:
        """Gives the conversation as a chatbot's messages, in HTML that shows each as it was written."""
        both = [(("user", exchange.question), ("assistant", exchange.answer)) for exchange in self.exchanges]
        return [{"role": role, "content": as_html(text)} for pair in both for role, text in pair if text]


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """Returns the file that Gradio describes.

    Raises:
        ImageError: for a file that was not uploaded; a request can name any path of this machine.
    """
    path = Path(str(upload.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError("it was not uploaded")
    return path


def open_upload(upload: Mapping[str, Any]) -> Image.Image:
    """Opens the picture that Gradio describes, within the limits for hostile files.

    Raises:
        ImageError: if it was not uploaded, cannot be read, is no picture, or is beyond the limits.
    """
    picture = shared_decoders().decode(read_image(uploaded_file(upload)))
    pixels = picture.width * picture.height
    if pixels > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / pixels)
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def keep_drawing(drawing: Image.Image) -> str:
    """Writes a drawing to where Gradio gives files to browsers from, and removes them; returns its path.

    Each gets a folder of its own, whose name nobody can guess: under a name made from its content, one visitor's would
    be written anew while another's browser reads it.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(32)
    folder.mkdir(parents=True)
    path = folder / "view.webp"
    drawing.save(path, quality=85, method=2)
    return str(path)
