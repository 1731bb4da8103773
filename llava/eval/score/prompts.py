"""Compares the prompts of answers with the questions that they are scored on.

Many benchmarks number their questions from 0, so ids alone do not identify a benchmark's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.score.rows import Key, Row, format_key

SHOWN = 80
"""Characters of a text in a message."""


def asks(prompt: str, question: str) -> bool:
    """Whether a prompt asks a question: holds its text, or is its beginning; blanks and `<image>` do not count."""
    prompt, question = _bare(prompt), _bare(question)
    return question in prompt or question.startswith(prompt)


def check_prompts(
    path: Path, answers: Mapping[Key, Row], questions: Mapping[Key, str], same: Callable[[str, str], bool] = asks
) -> None:
    """Checks that answers belong to these questions, as far as they repeat the prompt.

    Args:
        path: the answers' file.
        answers: by question; those of V* by likelihood are passed over, since they may repeat another wording.
        questions: the text of each question.
        same: whether a prompt, the first argument, asks a question.

    Raises:
        ValueError: an answer has the prompt of another question.
    """
    for key, text in questions.items():
        prompt, metadata = answers[key].get("prompt"), answers[key].get("metadata")
        if isinstance(metadata, dict) and metadata.get("protocol") == "likelihood":
            continue
        if isinstance(prompt, str) and prompt.strip() and not same(prompt, text):
            raise ValueError(
                f"{path}: the answer to {format_key(key)} is to another question: its prompt is {_cut(prompt)}, and the"
                f" question is {_cut(text)}; give the file of the answers to these questions"
            )


def _bare(text: str) -> str:
    return " ".join(text.replace(DEFAULT_IMAGE_TOKEN, " ").split())


def _cut(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
