"""Answers many questions about encoded images, greedily and in batches; an answer does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.run.batching import BatchLimits, form_batches
from llava.eval.run.generate import generate, prompt_ids
from llava.eval.score.choice import label_letter
from llava.eval.score.option_lists import find_listed_options
from llava.eval.score.parse import option_letter
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import GenerationError, PromptTooLongError
from llava.serve.engine.params import Sampling


def same_answer(said: str, right: str) -> bool:
    """Whether two short answers are equal, apart from case, outer blanks and a final full stop."""
    return _bare(said) == _bare(right)


def is_right(question: str, said: str, right: str) -> bool:
    """Whether an answer is right: by its letter where the question lists options and one is right, else `same_answer`.

    Args:
        question: the question with its options, as `find_listed_options` reads them.
        said: the model's answer, read by `option_letter`.
        right: the right answer; an option's letter, as "A" or "(A)", or its text.
    """
    letters = right_letters(question, right)
    return option_letter(said, find_listed_options(question)) in letters if letters else same_answer(said, right)


def right_letters(question: str, right: str) -> list[str]:
    """Finds the letters of the options that are the right answer; none where the question lists no such option."""
    options = find_listed_options(question)
    letters = [letter for letter in options if letter == label_letter(right)]
    return letters or [letter for letter, text in options.items() if text and same_answer(text, right)]


def _bare(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


class Answerer:
    """Answers questions about encoded images with an engine's model, greedily."""

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

    def answer(self, tokens: Sequence[ImageTokens], questions: Sequence[tuple[int, str]]) -> list[str]:
        """Answers (index into `tokens`, text) pairs, in their order.

        Args:
            tokens: The images as the model's `encode_tokens` returns them.
            questions: Each about one image.

        Raises:
            PromptTooLongError: a prompt and the longest answer exceed the context; raised before anything is computed.
            GenerationError: the model failed on one of them.
        """
        prompts = [prompt_ids(self.engine, text) for _, text in questions]
        owners = [tokens[owner] for owner, _ in questions]
        for ids, image, (_, text) in zip(prompts, owners, questions, strict=True):
            try:
                self.engine.check_length(len(ids) - 1, image.span.context, self.max_new_tokens)
            except PromptTooLongError as error:
                raise PromptTooLongError(f"{error}; the question is {text!r}") from None
        lengths = [len(ids) - 1 + len(image.features) for ids, image in zip(prompts, owners, strict=True)]
        answers = [""] * len(questions)
        limits = BatchLimits(rows=max(1, len(lengths)), tokens=self.batch_tokens, waste=1.0)
        for batch in form_batches(lengths, limits):
            said = generate(self.engine, [prompts[i] for i in batch], [owners[i] for i in batch], self.sampling)
            for index, text in zip(batch, said, strict=True):
                if isinstance(text, GenerationError):
                    raise text
                answers[index] = text
        return answers
