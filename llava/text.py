"""Checks of text that a tokenizer will get."""

from __future__ import annotations


def check_encodable(name: str, text: str) -> None:
    """Raises ValueError if the text `name` holds half a character, which JSON can spell and no tokenizer takes.

    Bytes of a terminal that are not UTF-8 read as such halves, too.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character, {text[error.start]!r}") from None
