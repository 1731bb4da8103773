"""Checks the values of the page's controls, which come from a client, and converts them to settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter
from typing import Any, TypeVar

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.backend import Backend

QLIP, QUESTION, CLIP = "QLIP", "QLIP by question", "CLIP"
MODES = (QLIP, QUESTION, CLIP)
LARGEST_ALPHA = 3.0
MAX_QUESTION = 4000  # characters
MAX_MODEL_NAME = 300  # characters
CONTROLS = 7  # number of the page's controls

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Range of a slider."""

    label: str
    low: float
    high: float
    whole: bool = False

    def read(self, value: Any) -> float:
        """Checks a value from a client.

        Raises:
            ValueError: the value is not a number, or is out of range.
        """
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # NaN is in no range, and an int may be too large for a float.
        if not (number and self.low <= value <= self.high and (not self.whole or math.trunc(value) == value)):
            kind = "a whole number" if self.whole else "a number"
            allowed = f"{kind} from {self.low:g} to {self.high:g}"
            raise ValueError(f"{self.label} is {describe(value)}; it must be {allowed}")
        return int(value) if self.whole else float(value)


def describe(value: Any) -> str:
    """Describes a value from a client in bounded length."""
    if value is None:
        return "empty"
    if isinstance(value, (str, bool, float)):
        shown = repr(value)
        return shown if len(shown) <= 40 else shown[:40] + "…"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a huge number"
    return f"a JSON {'object' if isinstance(value, Mapping) else 'array'}"


def ranges_of(backend: Backend) -> dict[str, Range]:
    """Lists the sliders' ranges by the fields of `Controls`."""
    alpha = backend.defaults.alpha if backend.defaults else 0.0
    return {
        "alpha": Range("Split threshold", 0, max(LARGEST_ALPHA, alpha)),
        "budget": Range("Token budget", 1, backend.max_tokens, whole=True),
        "temperature": Range("Temperature", 0, 2),
        "top_p": Range("Top-p", 0.05, 1),
        "max_new_tokens": Range("Longest answer, in tokens", 1, 1024, whole=True),
    }


@dataclass(frozen=True)
class Controls:
    """Values of the page's controls, in the page's order."""

    mode: str
    """One of `MODES`."""
    alpha: float
    budget: float
    temperature: float
    top_p: float
    max_new_tokens: float
    model: str
    """Name of one of the backend's models; "" if there is no choice."""

    @classmethod
    def read(cls, values: Sequence[Any], backend: Backend) -> Controls:
        """Checks the values from a client.

        Raises:
            ValueError: a value is missing, of a wrong type, or out of range.
        """
        if len(values) != CONTROLS:
            raise ValueError(f"the page has {CONTROLS} controls, and {len(values)} values came; reload the page")
        mode, *numbers, model = values
        if mode not in MODES:
            raise ValueError(f"the mode is {describe(mode)}; it must be {', '.join(MODES[:-1])} or {MODES[-1]}")
        if not (model is None or (isinstance(model, str) and len(model) <= MAX_MODEL_NAME)):
            raise ValueError(
                f"the model is {describe(model)}; it must be a name of at most {MAX_MODEL_NAME} characters"
            )
        ranges = ranges_of(backend).items()
        read = {name: field.read(value) for (name, field), value in zip(ranges, numbers, strict=True)}
        return cls(mode, **read, model=model or "")

    def options(self, backend: Backend, mode: str | None = None) -> QLIPOptions:
        """Makes the QLIP options for a mode, by default the chosen one."""
        if backend.defaults is None:
            return QLIPOptions()
        mode = mode or self.mode
        if mode == CLIP:
            return QLIPOptions(enabled=False)
        # Also where it is the page's default: a worker may have another one.
        budget = "question" if mode == QUESTION else "score"
        return QLIPOptions(enabled=True, alpha=self.alpha, max_tokens=int(self.budget), budget=budget)

    def sampling(self) -> Sampling:
        """Makes the sampling settings."""
        top_p = None if self.top_p == 1 else self.top_p
        return Sampling(self.temperature, top_p, max_new_tokens=int(self.max_new_tokens))


def name_controls(handler: Handler) -> Handler:
    """Names the controls that a handler takes as `*values`, in its signature, which is where Gradio's API looks.

    The model may be left out of a call; the other controls have defaults on the page.
    """
    signature = inspect.signature(handler)
    *before, rest = signature.parameters.values()
    named = [Parameter(field.name, Parameter.POSITIONAL_OR_KEYWORD) for field in fields(Controls)]
    named[-1] = named[-1].replace(default=None)
    handler.__signature__ = signature.replace(parameters=[*before, *named, rest])  # type: ignore[attr-defined]
    return handler


def read_press(value: Any) -> int | None:
    """Reads the number that a browser gives a press; None where a client sends something else, or nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def read_question(value: Any) -> str:
    """Checks a question from a client and strips it.

    Raises:
        ValueError: the question is not text, is too long, or cannot be encoded.
    """
    if not (value is None or isinstance(value, str)):
        raise ValueError(f"the question is {describe(value)}; it must be text")
    question = (value or "").strip()
    if len(question) > MAX_QUESTION:
        raise ValueError(
            f"the question has {len(question):,} characters; at most {MAX_QUESTION:,} are allowed, so shorten it"
        )
    if DEFAULT_IMAGE_TOKEN in question:
        why = "it marks where a picture is; write it without the angle brackets"
        raise ValueError(f"the question may not hold {DEFAULT_IMAGE_TOKEN!r}: {why}")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the question contains an invalid character (a lone surrogate); type it again") from None
    return question
