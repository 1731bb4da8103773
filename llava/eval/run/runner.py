"""Questions in, answers out: pictures are made ready ahead, batches are formed by tokens, each picture is encoded once.

Works through windows of some batches' worth of questions, so that batches are of like length and memory is bounded. An
answer does not depend on its batch. Knows neither question files nor the file of answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.run.batching import BatchLimits, form_batches
from llava.eval.run.generate import Request, generate, prompt_ids, row_seed
from llava.eval.run.pictures import Source, Unreadable
from llava.eval.run.questions import Question
from llava.model.image_tokens import ImageTokens
from llava.model.prepared_image import PreparedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling

WINDOW = 4
"""Full batches' worth of questions that batches are chosen from."""

Asked = tuple[int, Question]
"""A question and its place in the question file."""


@dataclass(frozen=True)
class Outcome:
    """What became of a question."""

    index: int
    question: Question
    text: str | None
    """The answer; None where there is none."""
    error: str | None = None
    """Why there is none."""
    picture: PreparedImage | None = None
    """What the model was shown; its pixels are gone."""


@dataclass(frozen=True)
class _Planned:
    """A question that can be asked."""

    index: int
    question: Question
    ids: Tensor
    picture: PreparedImage | None

    @property
    def length(self) -> int:
        visual = self.picture.tokens - 1 if self.picture else 0  # the placeholder is no token
        return len(self.ids) + visual


class Runner:
    """Answers questions with a loaded model."""

    def __init__(
        self,
        engine: ChatEngine,
        sampling: Sampling,
        seed: int = 0,
        limits: BatchLimits | None = None,
    ) -> None:
        """
        Args:
            engine: the model.
            sampling: how answers are decoded.
            seed: of sampled answers.
            limits: of batches.
        """
        self.engine = engine
        self.sampling = sampling
        self.seed = seed
        self.limits = limits or BatchLimits()

    def run(self, asked: Sequence[Asked], ready: Iterator[PreparedImage | Unreadable]) -> Iterator[list[Outcome]]:
        """Yields the outcomes of batch after batch; in each window the longest prompts come first.

        Args:
            asked: the questions.
            ready: the pictures of `pictures_of(asked, limits)`, in that order.
        """
        for window in _windows(asked, self.limits):
            yield from self._window(window, {source: next(ready) for source in _pictures(window)})

    def _window(
        self, window: Sequence[Asked], ready: dict[Source, PreparedImage | Unreadable]
    ) -> Iterator[list[Outcome]]:
        plans, refused = [], []
        for index, question in window:
            plan = self._plan(index, question, ready)
            (plans if isinstance(plan, _Planned) else refused).append(plan)
        if refused:
            yield refused
        waiting = Counter(plan.question.image for plan in plans)
        encoded: dict[Source | None, ImageTokens] = {}
        for batch in form_batches([plan.length for plan in plans], self.limits):
            chosen = [plans[i] for i in batch]
            yield self._answer(chosen, encoded)
            waiting.subtract(plan.question.image for plan in chosen)
            encoded = {source: tokens for source, tokens in encoded.items() if waiting[source]}

    def _plan(
        self, index: int, question: Question, ready: dict[Source, PreparedImage | Unreadable]
    ) -> _Planned | Outcome:
        """What will be asked, or why it cannot be."""
        picture = None if question.image is None else ready[question.image]
        if isinstance(picture, Unreadable):
            return Outcome(index, question, None, picture.reason)
        wanted = 0 if picture is None else 1
        ids = prompt_ids(self.engine, question.text, wanted)
        if (found := int((ids == IMAGE_TOKEN_INDEX).sum())) != wanted:
            return Outcome(index, question, None, f"the prompt has {found} places for pictures instead of {wanted}")
        try:
            visual = picture.context if picture else 0
            self.engine.check_length(len(ids) - wanted, visual, self.sampling.max_new_tokens)
        except ValueError as error:
            return Outcome(index, question, None, str(error))
        return _Planned(index, question, ids, picture)

    def _answer(self, plans: Sequence[_Planned], encoded: dict[Source | None, ImageTokens]) -> list[Outcome]:
        """Answers a batch; one that memory is too small for, in halves."""
        try:
            self._encode(plans, encoded)
            requests = [
                Request(plan.ids, encoded.get(plan.question.image), row_seed(self.seed, plan.index)) for plan in plans
            ]
            texts = generate(self.engine, requests, self.sampling)
        except torch.OutOfMemoryError:
            texts = []
        if texts:
            return [
                Outcome(plan.index, plan.question, text, None, plan.picture)
                for plan, text in zip(plans, texts, strict=True)
            ]
        if len(plans) == 1:
            error = f"{plans[0].length} tokens are more than the device's memory can take"
            return [Outcome(plans[0].index, plans[0].question, None, error, plans[0].picture)]
        torch.cuda.empty_cache()
        half = len(plans) // 2
        return self._answer(plans[:half], encoded) + self._answer(plans[half:], encoded)

    @torch.inference_mode()
    def _encode(self, plans: Sequence[_Planned], encoded: dict[Source | None, ImageTokens]) -> None:
        """Adds the pictures of a batch that are not encoded yet, in batches of their own: the prompts' like lengths may
        hide that pictures differ, and the tower would pad them."""
        new = {plan.question.image: plan.picture for plan in plans if plan.question.image not in encoded}
        pictures = [(source, picture) for source, picture in new.items() if picture is not None]
        for batch in form_batches([picture.tokens for _, picture in pictures], self.limits):
            tokens = self.engine.model.encode_tokens([pictures[i][1].image for i in batch])
            encoded.update(zip([pictures[i][0] for i in batch], tokens, strict=True))


def pictures_of(asked: Sequence[Asked], limits: BatchLimits) -> list[Source]:
    """The pictures that a run needs, in the order in which it needs them; one comes again in another window."""
    return [source for window in _windows(asked, limits) for source in _pictures(window)]


def _windows(asked: Sequence[Asked], limits: BatchLimits) -> list[Sequence[Asked]]:
    size = WINDOW * limits.rows
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def _pictures(window: Sequence[Asked]) -> dict[Source, None]:
    """The pictures of some questions, each once."""
    return dict.fromkeys(question.image for _, question in window if question.image is not None)
