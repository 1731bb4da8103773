"""Many questions about many pictures: each picture is encoded once, its questions go through the model in batches.

Reads LLaVA's question files and judges short answers. Greedy, and an answer does not depend on its batch. It knows
neither settings nor tables of results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.run.batching import BatchLimits, form_batches
from llava.eval.run.generate import Request, generate, prompt_ids
from llava.eval.score.rows import read_rows
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLong
from llava.serve.engine.params import Sampling


@dataclass(frozen=True)
class VisualQuestion:
    """One line of a question file."""

    question_id: int | str
    image: str
    """File name within the image folder."""
    text: str
    answer: str | None = None
    """The right answer, where it is known."""
    category: str = "all"


def read_questions(question_file: Path, answers_file: Path | None = None) -> list[VisualQuestion]:
    """Reads questions, one JSON object a line: `question_id, image, text` and, if known, `category` and `answer`.

    Args:
        question_file: the questions.
        answers_file: right answers as `question_id, text` (or `answer`), for question files without them.

    Raises:
        ValueError: a line is no such object, a question has no answer in the file, or there are no questions.
    """
    answers: dict[object, str] = {}
    for number, row in read_rows(answers_file) if answers_file else ():
        if "question_id" not in row or not ("text" in row or "answer" in row):
            raise ValueError(f"{answers_file}:{number}: an answer needs question_id and text")
        answers[row["question_id"]] = str(row.get("text", row.get("answer")))
    questions = []
    for number, row in read_rows(question_file):
        if missing := [key for key in ("question_id", "image", "text") if key not in row]:
            raise ValueError(f"{question_file}:{number}: the question has no {', '.join(missing)}")
        name = row["question_id"]
        if answers_file and name not in answers:
            raise ValueError(f"{answers_file} has no answer to question {name!r}")
        answer = answers.get(name, row.get("answer", row.get("label")))
        category = str(row.get("category", "all"))
        questions.append(
            VisualQuestion(name, row["image"], row["text"], None if answer is None else str(answer), category)
        )
    if not questions:
        raise ValueError(f"{question_file} holds no questions")
    return questions


def same_answer(said: str, right: str) -> bool:
    """Whether two short answers are equal but for case, outer blanks and a full stop."""
    return _bare(said) == _bare(right)


def _bare(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


class Answerer:
    """Answers questions about encoded pictures with an engine's model, greedily."""

    def __init__(self, engine: ChatEngine, max_new_tokens: int = 64, batch_tokens: int = 16384) -> None:
        """
        Args:
            engine: A loaded model with its prompt format.
            max_new_tokens: Longest answer.
            batch_tokens: Most tokens of a batch's prompts, padding included; a longer prompt goes alone.
        """
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self.sampling = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
        self.batch_tokens = batch_tokens

    def answer(self, pictures: Sequence[ImageTokens], questions: Sequence[tuple[int, str]]) -> list[str]:
        """Answers (index into `pictures`, text) pairs, in their order.

        Args:
            pictures: As the model's `encode_tokens` gives them.
            questions: Each about one picture.

        Raises:
            PromptTooLong: a prompt and the longest answer exceed the context; before anything is computed.
        """
        prompts = [prompt_ids(self.engine, text) for _, text in questions]
        owners = [pictures[owner] for owner, _ in questions]
        for ids, picture, (_, text) in zip(prompts, owners, questions, strict=True):
            try:
                self.engine.check_length(len(ids) - 1, picture.span.context, self.max_new_tokens)
            except PromptTooLong as error:
                raise PromptTooLong(f"{error}; the question is {text!r}") from None
        lengths = [len(ids) - 1 + len(picture.features) for ids, picture in zip(prompts, owners, strict=True)]
        answers = [""] * len(questions)
        limits = BatchLimits(rows=max(1, len(lengths)), tokens=self.batch_tokens, waste=1.0)
        for batch in form_batches(lengths, limits):
            said = generate(self.engine, [Request(prompts[i], owners[i]) for i in batch], self.sampling)
            for index, text in zip(batch, said, strict=True):
                answers[index] = text
        return answers
