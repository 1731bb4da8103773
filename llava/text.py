"""The text of questions: what is refused before a tokenizer gets it, and where the images go."""

from __future__ import annotations

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER


def check_encodable(name: str, text: str) -> None:
    """Raises ValueError if the text `name` holds half a character, which JSON can spell and no tokenizer takes.

    Bytes of a terminal that are not UTF-8 read as such halves, too.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        source = ", as a byte reads that is not UTF-8" if "\udc80" <= half <= "\udcff" else ""
        raise ValueError(f"{name} holds half a character, {half!r}{source}") from None


def check_question(text: str, name: str = "the question") -> None:
    """Raises ValueError unless the text `name` can be asked: not blank, and without half a character.

    Raises TypeError if it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r}; it must be text")
    if not text.strip():
        raise ValueError("the question is empty" + (f" ({name})" if name.startswith("--") else ""))
    check_encodable(name, text)


def place_images(question: str, images: int, token: str = DEFAULT_IMAGE_TOKEN) -> str:
    """Puts one image token per image before a conversation's first question, or where the question has `<image>`.

    A question that has any is left to say itself where each image goes, by `<image>` or LLaVA's `<image-placeholder>`.
    """
    question = question.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    if DEFAULT_IMAGE_TOKEN not in question:
        return f"{token}\n" * images + question
    return question if token in question else question.replace(DEFAULT_IMAGE_TOKEN, token)


def check_later_question(question: str) -> None:
    """Raises ValueError if a question that is not its conversation's first has a place for an image."""
    if DEFAULT_IMAGE_TOKEN in question:
        raise ValueError(f"a later question may not hold {DEFAULT_IMAGE_TOKEN}: the first one shows all pictures")
