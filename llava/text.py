"""The text of questions: what is refused before a tokenizer gets it, and where the images go."""

from __future__ import annotations

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER


def check_encodable(name: str, text: str) -> None:
    """Raises ValueError if the text `name` contains a lone surrogate, which JSON allows but no tokenizer accepts.

    Terminal input that is not UTF-8 arrives as lone surrogates, too.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        source = ", as a byte that is not UTF-8 is read" if "\udc80" <= half <= "\udcff" else ""
        raise ValueError(f"{name} contains a lone surrogate, {half!r}{source}") from None


def check_question(text: str, name: str = "the question") -> None:
    """Raises ValueError unless the text `name` can be asked: not blank, and without lone surrogates.

    Raises TypeError if it is not text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r}; it must be text")
    if not text.strip():
        raise ValueError("the question is empty" + (f" ({name})" if name.startswith("--") else ""))
    check_encodable(name, text)


def place_images(question: str, images: int, token: str = DEFAULT_IMAGE_TOKEN) -> str:
    """Puts one image token per image before a conversation's first question, or where the question has `<image>`.

    A question with `<image>` or LLaVA's `<image-placeholder>` already says where the images go and keeps its places.

    Raises:
        ValueError: the number of images is no integer, or negative.
    """
    if not isinstance(images, int) or images < 0:
        raise ValueError(f"the number of images is {images!r}; it must be an integer, 0 or more")
    question = question.replace(IMAGE_PLACEHOLDER, DEFAULT_IMAGE_TOKEN)
    if DEFAULT_IMAGE_TOKEN not in question:
        return f"{token}\n" * images + question
    return question if token in question else question.replace(DEFAULT_IMAGE_TOKEN, token)


def check_later_question(question: str) -> None:
    """Raises ValueError if a question that is not its conversation's first has a place for an image."""
    if DEFAULT_IMAGE_TOKEN in question:
        raise ValueError(f"a later question may not hold {DEFAULT_IMAGE_TOKEN}: the first one shows all pictures")
