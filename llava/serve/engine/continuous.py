"""Generates answers in one batch that requests join and leave between tokens.

Each turn of the loop does one bounded piece of work for the requests that join (some images, or some hundreds of
tokens of prompts), and one token for all that run, so that nobody waits for the end of another's answer. transformers'
own continuous batching is not used: it takes token ids alone, counts positions itself and has no bias on keys, while
an image is embeddings at fractional positions whose keys have weights.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.encoding import encode_in_parts
from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.engine.halving import free_and_halve, release_tensors, split_after_failure
from llava.serve.engine.params import GROWTH, EngineLimits
from llava.serve.engine.prefill import PlacedPrompt, bias_prompts, place_prompt, prefill
from llava.serve.engine.prefixes import Prefix, PrefixCache
from llava.serve.engine.running import RunningRows
from llava.serve.engine.slots import SlotCache
from llava.serve.engine.streams import Stream, TokenChooser, while_wanted
from llava.serve.engine.vision import VisionFrontend

logger = logging.getLogger(__name__)

TakeWaiting = Callable[[Sequence[AnswerStream], int], Sequence[AnswerStream]]
"""Takes waiting requests that may join, given those that are being answered and how many rows there may be."""


@dataclass(eq=False)
class RequestStream(Stream):
    """The row of a request."""

    answer: AnswerStream


class ContinuousBatch:
    """The rows that are being generated, those that are joining, and those that wait for memory."""

    def __init__(self, model: Any, vision: VisionFrontend, limits: EngineLimits, prefixes: PrefixCache) -> None:
        """
        Args:
            model: A LLaVA model for which `can_continue` holds.
            vision: Encodes its images.
            limits: Bounds on the batch.
            prefixes: Keeps keys and values of answers that have ended.
        """
        self.model, self.vision, self.limits, self.prefixes = model, vision, limits, prefixes
        self._running: RunningRows[RequestStream] = RunningRows(model, limits.max_batch_tokens)
        self._joining: list[RequestStream] = []
        self._join: Generator[None, None, None] | None = None
        self._suspended: deque[RequestStream] = deque()  # did not fit into memory
        self._most_rows = limits.max_batch

    @torch.inference_mode()
    def run(self, first: Sequence[AnswerStream], take_waiting: TakeWaiting) -> None:
        """Answers requests, and those that arrive in the meantime, until none are left. Errors reach their readers.

        Args:
            first: Requests to begin with.
            take_waiting: Called between tokens.
        """
        try:
            self._most_rows = self.limits.max_batch
            self._begin_joining([RequestStream(answer.row, answer) for answer in first])
            while self._advance_joining(take_waiting) or self._running.streams:
                self._step()
        except Exception as error:  # nobody else ends these answers
            logger.exception("the batch failed")
            for answer in self._answers():
                answer.fail(error)
        finally:
            self._running.clear()
            self._joining, self._join = [], None
            self._suspended.clear()

    def _answers(self) -> list[AnswerStream]:
        """Lists the requests that are being answered."""
        streams = [*self._running.streams, *self._joining, *self._suspended]
        return [stream.answer for stream in streams if not stream.row.ended]

    # Joining

    def _advance_joining(self, take_waiting: TakeWaiting) -> bool:
        """Does a piece of the work for requests that join; false if none joins or waits for memory."""
        self._remove_ended()
        if self._join is None:
            self._running.cache.most = self.limits.max_batch_tokens
            taken = take_waiting(self._answers(), 0 if self._suspended else self._most_rows)
            joining = [RequestStream(answer.row, answer) for answer in taken]
            if self._may_continue():
                joining = [self._suspended.popleft()]
            if not joining:
                return bool(self._suspended)
            self._begin_joining(joining)
        for _ in self._join or ():
            return True
        self._join, self._joining = None, []
        return True

    def _may_continue(self) -> bool:
        """Whether there is room for a request that waits for memory."""
        first = [*self._suspended][:1]
        return bool(first) and len(self._running.streams) < self._most_rows and self._hold(GROWTH, first)

    def _begin_joining(self, streams: list[RequestStream]) -> None:
        self._joining, self._join = streams, self._admit(streams)

    def _admit(self, streams: Sequence[RequestStream]) -> Generator[None, None, None]:
        """Lets requests join; those that fail together are tried in parts, so that only those at fault fail."""
        streams = [stream for stream in streams if not stream.row.finished()]
        if not streams:
            return
        try:
            yield from self._prefill(streams)
            return
        except Exception as error:  # any error ends these answers only
            failure = error
        parts = self._parts_to_retry(streams, failure)
        del failure  # its traceback holds the tensors that did not fit
        for part in parts:
            yield
            yield from self._admit(part)

    def _parts_to_retry(self, streams: Sequence[RequestStream], failure: Exception) -> list[Sequence[RequestStream]]:
        if ran_out_of_memory(failure) and self.prefixes.make_room():
            return [streams]
        if len(streams) > 1:
            return split_after_failure(streams, failure, "that join together")
        (stream,) = streams
        if ran_out_of_memory(failure) and self._running.streams:
            logger.warning("out of memory for a request beside %d others; it waits", len(self._running.streams))
            self._most_rows = len(self._running.streams)
            self._suspended.append(stream)
        else:
            stream.answer.fail(release_tensors(failure))  # the answer keeps it until it is read
        return []

    def _prefill(self, streams: Sequence[RequestStream]) -> Generator[None, None, None]:
        """Encodes the images of requests, runs their prompts, chooses their first tokens and adds them to the batch."""
        most = self.limits.max_join_tokens
        answers = [stream.answer for stream in streams]
        known = [self.prefixes.find(stream.key) for stream in streams]
        skipped = [len(prefix.spans) for prefix in known]
        encoded = yield from while_wanted(streams, encode_in_parts(self.vision, answers, most, skipped))
        if encoded is None:
            return
        yield
        prompts = [self._place(*pair, encoded) for pair in zip(streams, known, strict=True)]
        longest = max(len(prompt.positions) for prompt in prompts)
        cache = SlotCache(len(self._running.cache.layers), [0] * len(streams), len(streams) * longest)
        self._running.cache.bound(self.limits.max_batch_tokens - cache.most)
        cache.reserve(len(streams), longest)
        for row, prefix in enumerate(known):
            if prefix.states is not None:
                cache.write(row, prefix.states)
        del known
        logits = yield from while_wanted(streams, prefill(self.model, prompts, cache, most))
        if logits is None:
            return
        for stream, prompt in zip(streams, prompts, strict=True):
            stream.position = prompt.end - 1
        chooser = TokenChooser(self.model, streams, logits.device)
        self._running.add(streams, cache, bias_prompts(self.model, prompts))
        self._choose(streams, lambda: chooser.take(logits))

    def _place(self, stream: RequestStream, known: Prefix, encoded: list[ImageTokens]) -> PlacedPrompt:
        """Places a request's prompt; takes its images off the encoded ones, in order."""
        new = len(stream.answer.views) - len(known.spans)
        images, encoded[:new] = encoded[:new], []
        stream.spans = (*known.spans, *(image.span for image in images))
        stream.answer.note_cached(known.tokens)
        return place_prompt(self.model, stream.ids, images, len(known.key), known.spans)

    # Running

    def _step(self) -> None:
        """Generates one token for each running row; out of memory, half of them are suspended."""
        self._remove_ended()
        self._keep_limit()
        if not self._running.streams:
            return
        try:
            logits = self._running.run()
        except Exception as error:
            failure = error
        else:
            self._choose(self._running.streams, lambda: self._running.choose(logits))
            return
        failure = release_tensors(failure)
        if ran_out_of_memory(failure) and self._make_room():
            return
        logger.warning("%d answers failed during generation", len(self._running.streams), exc_info=failure)
        self._fail(self._running.streams, failure)

    def _choose(self, streams: Sequence[RequestStream], choose: Callable[[], None]) -> None:
        try:
            choose()
        except Exception as error:  # some rows may have drawn already, so none is drawn again
            logger.warning("%d answers failed as their tokens were chosen", len(streams), exc_info=error)
            self._fail(streams, error)

    def _fail(self, streams: Sequence[RequestStream], error: Exception) -> None:
        for stream in streams:
            stream.answer.fail(error)

    def _remove_ended(self) -> None:
        """Frees the rows of answers that have ended or were cancelled."""
        for stream in [each for each in self._suspended if each.row.finished()]:
            self._suspended.remove(stream)
        for row in self._running.ended():
            self._keep(row)
            self._running.remove(row)
            self._most_rows = min(self._most_rows + 1, self.limits.max_batch)

    def _keep(self, row: int) -> None:
        """Keeps the keys and values of an answer that has ended, for a prompt that continues it."""
        stream, length = self._running.streams[row], self._running.cache.lengths[row]
        if stream.row.error is None and stream.has_whole_key:
            key = stream.key[:-1]  # the last token was not run
            size = self._running.cache.count_bytes(length)
            try:
                self.prefixes.store(key, stream.spans, size, lambda: self._running.cache.read(row, length))
            except Exception as error:  # memory that is short serves the answers first
                self.prefixes.clear()
                logger.warning("dropped the keys and values of earlier prompts", exc_info=error)

    # Out of memory, or beyond the limit

    def _hold(self, growth: int, more: Sequence[RequestStream]) -> bool:
        """Whether the limit allows the running rows, and some others, to grow by `growth` tokens each."""
        lengths = [*self._running.cache.lengths, *(stream.answer.length for stream in more)]
        return self.limits.hold(lengths, growth)

    def _keep_limit(self) -> None:
        """Suspends requests, the newest first, until the limit allows the others another token."""
        while not self._hold(1, self._not_run()):
            if self._join is not None:
                self._stop_joining()
            else:
                self._suspend(len(self._running.streams) - 1)

    def _make_room(self) -> bool:
        """Frees memory of earlier prompts, of joining requests or of half of the rows; false if there is none.

        Suspended requests continue later; their keys and values are computed once more.
        """
        if self.prefixes.make_room():
            return True
        if self._join is not None:
            logger.warning("out of memory; %d requests that join wait", len(self._not_run()))
            self._stop_joining()
        elif len(self._running.streams) > 1:
            logger.warning("out of memory with %d answers; continuing with half as many", len(self._running.streams))
            self._suspend(len(free_and_halve(self._running.streams)[0]))
        else:
            return False
        return True

    def _not_run(self) -> list[RequestStream]:
        """Lists the requests that join; of those that join in parts, some run or wait already."""
        placed = [*self._running.streams, *self._suspended]
        return [stream for stream in self._joining if stream not in placed]

    def _stop_joining(self) -> None:
        """Suspends the requests that join."""
        if self._join is not None:
            self._join.close()
        self._suspended.extendleft(reversed(self._not_run()))
        self._join, self._joining = None, []
        self._most_rows = len(self._running.streams)

    def _suspend(self, most_rows: int) -> None:
        """Suspends rows until `most_rows` are left; all of them if there is no memory to move the others."""
        self._most_rows = most_rows
        while len(self._running.streams) > most_rows:
            self._suspended.appendleft(self._running.streams[-1])
            self._running.remove(len(self._running.streams) - 1)
        try:
            self._running.cache.shrink()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            self._suspended.extendleft(reversed(self._running.streams))
            self._running.clear()
