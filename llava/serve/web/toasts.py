"""Error messages for visitors: what happened and what to do, as plain text.

Gradio renders a toast's text as HTML, so text from a visitor, a file, a model or a controller is escaped here. It shows
no titles, and the page hides repeated toasts, so each text must be clear by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from llava.serve.http.failures import Failure, explain

MAX_TEXT = 600  # characters of a toast

ADVICE = {
    "invalid_image": "Choose another picture.",
    "context_length_exceeded": "Shorten the question, lower the token budget, or clear the chat.",
    "invalid_api_key": "The operator of this page must give the controller's key.",
    "model_not_found": "Choose another model, or reload the page.",
    "flagged": "Ask something else.",
    "moderation_failed": "Try again in a minute.",
    "unreachable": "Try again in a minute.",
    "broken_off": "Ask again, or press Regenerate.",
    "internal_error": "Try again.",
    "model_failed": "Try again, or lower the token budget.",
}
"""What to do about an error, by its kind; the messages of other kinds include it."""

SHORTER = {"model_failed": "the model failed; the server's log says why"}
"""What visitors read, by kind, instead of messages that name an exception's class."""


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON can contain but Gradio cannot send."""
    return text.encode("utf-8", "replace").decode("utf-8")


def as_html(text: str) -> str:
    """Escapes a text so that a browser shows it literally; quotes stay, since it is never used in an attribute."""
    return escape(replace_surrogates(text), quote=False)


def toast_error(text: str) -> gr.Error:
    """Makes an error that is shown to the visitor as a toast, without a traceback in the log."""
    short = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
    return gr.Error(as_html(short), print_exception=False)


def warn(text: str) -> None:
    """Shows the visitor a text as a toast, while the event continues."""
    gr.Warning(as_html(text))


@contextmanager
def errors_as_toasts() -> Iterator[None]:
    """Converts exceptions to toasts that say what happened and what to do."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise toast_error(with_advice(explain(error))) from None


def with_advice(failure: Failure) -> str:
    """Formats a failure as sentences: what happened and what to do."""
    message = SHORTER.get(failure.kind, failure.message)
    if failure.kind == "invalid_image":
        message = re.sub(r"(\d)x(\d)", r"\1 × \2", message)  # sizes
    return f"{message[:1].upper()}{message[1:]}. {ADVICE.get(failure.kind, '')}".strip()
