"""Answers questions in batches: batches are formed by number of tokens, and each image is encoded once per window.

A window is a few batches' worth of questions, so that a batch's prompts are of similar length and memory is bounded. An
answer does not depend on its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.command import format_error
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.run.answers.answer import Answer
from llava.eval.run.batching import BatchLimits, form_batches
from llava.eval.run.generate import generate, prompt_ids, refine_for_questions, row_seed
from llava.eval.run.inputs.questions import Question
from llava.eval.run.windows import find_sources, split_windows
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Source, Unreadable
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import GenerationError, ran_out_of_memory
from llava.serve.engine.halving import free_and_halve
from llava.serve.engine.params import Sampling

CPU_TOKENS = 512
"""Visual tokens that the tower encodes at once on a CPU, where larger passes are slower: they leave its cache."""


@dataclass(frozen=True)
class _Prompt:
    """A question that can be asked: its prompt and prepared image."""

    question: Question
    ids: Tensor
    prepared: PreparedImage | None
    longest: int
    """Most tokens of its answer."""

    @property
    def length(self) -> int:
        visual = self.prepared.tokens - 1 if self.prepared else 0  # the placeholder is not a token
        return len(self.ids) + visual


class Runner:
    """Answers questions with a loaded model."""

    def __init__(
        self,
        engine: ChatEngine,
        sampling: Sampling,
        seed: int = 0,
        limits: BatchLimits | None = None,
        shorten: bool = False,
    ) -> None:
        """
        Args:
            engine: the model.
            sampling: how answers are decoded.
            seed: seed of sampled answers.
            limits: bounds of a batch.
            shorten: whether to reduce the longest answer to what each question's context leaves.
        """
        self.engine = engine
        self.sampling = sampling
        self.seed = seed
        self.limits = limits or BatchLimits()
        self.shorten = shorten

    def run(self, asked: Sequence[Question], ready: Iterator[PreparedImage | Unreadable]) -> Iterator[list[Answer]]:
        """Yields the answers batch by batch; in each window the longest prompts come first.

        Args:
            asked: the questions.
            ready: the images of `list_sources(asked, limits)`, in that order.
        """
        for window in split_windows(asked, self.limits):
            yield from self._answer_window(window, {source: next(ready) for source in find_sources(window)})

    def _answer_window(
        self, window: Sequence[Question], ready: dict[Source, PreparedImage | Unreadable]
    ) -> Iterator[list[Answer]]:
        prompts, refused = [], []
        for question in window:
            prompt = self._prepare(question, ready)
            (prompts if isinstance(prompt, _Prompt) else refused).append(prompt)
        if refused:
            yield refused
        waiting = Counter(prompt.question.image for prompt in prompts)
        encoded: dict[Source | None, ImageTokens] = {}
        images = [prompt.question.image or prompt.question.index for prompt in prompts]
        for batch in form_batches([prompt.length for prompt in prompts], self.limits, images):
            chosen = [prompts[i] for i in batch]
            yield self._answer(chosen, encoded)
            waiting.subtract(prompt.question.image for prompt in chosen)
            encoded = {source: tokens for source, tokens in encoded.items() if waiting[source]}

    def _prepare(self, question: Question, ready: dict[Source, PreparedImage | Unreadable]) -> _Prompt | Answer:
        """Builds a question's prompt, or the answer that says why it cannot be asked."""
        prepared = None if question.image is None else ready[question.image]
        if isinstance(prepared, Unreadable):
            return Answer(question, None, prepared.reason)
        wanted = 0 if prepared is None else 1
        ids = prompt_ids(self.engine, question.text, wanted)
        if (found := int((ids == IMAGE_TOKEN_INDEX).sum())) != wanted:
            return Answer(question, None, f"the prompt has {found} places for images instead of {wanted}")
        text, visual, sampling = len(ids) - wanted, prepared.context if prepared else 0, self.sampling
        if self.shorten:
            sampling = sampling.shorten(self.engine.context_len - text - visual)
        try:
            self.engine.check_length(text, visual, sampling.max_new_tokens)
        except ValueError as error:
            return Answer(question, None, str(error))
        return _Prompt(question, ids, prepared, sampling.max_new_tokens)

    def _answer(self, batch: Sequence[_Prompt], encoded: dict[Source | None, ImageTokens]) -> list[Answer]:
        """Answers a batch; one that does not fit into memory, in halves."""
        prompts, prepared = [prompt.ids for prompt in batch], [prompt.prepared for prompt in batch]
        try:
            self._encode(batch, encoded)
            seen = [encoded.get(prompt.question.image) for prompt in batch]
            prepared, seen = refine_for_questions(self.engine, prompts, prepared, seen)
            texts = generate(
                self.engine,
                prompts,
                seen,
                self.sampling,
                [row_seed(self.seed, prompt.question.index) for prompt in batch],
                [prompt.longest for prompt in batch],
            )
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            texts = []  # outside of this block the error, which holds the tensors that did not fit, is gone
        if texts:
            return [
                Answer(prompt.question, None, format_error(text), image)
                if isinstance(text, GenerationError)
                else Answer(prompt.question, text, None, image)
                for prompt, text, image in zip(batch, texts, prepared, strict=True)
            ]
        if len(batch) == 1:
            error = f"{batch[0].length} tokens are more than the device's memory can take"
            return [Answer(batch[0].question, None, error, batch[0].prepared)]
        return [answer for half in free_and_halve(batch) for answer in self._answer(half, encoded)]

    @torch.inference_mode()
    def _encode(self, batch: Sequence[_Prompt], encoded: dict[Source | None, ImageTokens]) -> None:
        """Encodes the images of a batch that are not in `encoded` yet, and adds them.

        Prompts of similar length may have images of different sizes, which the tower would pad; so the images are
        batched by their own number of tokens.
        """
        new = {prompt.question.image: prompt.prepared for prompt in batch if prompt.question.image not in encoded}
        images = [(source, prepared) for source, prepared in new.items() if prepared is not None]
        limits = self.limits
        if self.engine.model.device.type == "cpu":
            limits = replace(limits, tokens=min(limits.tokens, CPU_TOKENS))
        for places in form_batches([prepared.tokens for _, prepared in images], limits):
            tokens = encode_prepared(self.engine.model, [images[i][1] for i in places])
            encoded.update(zip([images[i][0] for i in places], tokens, strict=True))
