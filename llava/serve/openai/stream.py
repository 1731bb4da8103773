"""Sends an answer to a client of the OpenAI protocol, as one reply or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.logprobs import AnswerLogprob
from llava.serve.http.disconnects import wait_until_gone
from llava.serve.http.failures import explain
from llava.serve.http.metrics import Metrics
from llava.serve.openai.errors import INTERNAL, refusing
from llava.serve.openai.replies import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    Delta,
    FinishReason,
)
from llava.serve.openai.requests import ChatRequest

logger = logging.getLogger(__name__)


@dataclass
class Reply:
    """An answer that is being sent to a client, without its leading blanks."""

    answer: AnswerStream
    asked: ChatRequest
    """The request, without its messages."""
    metrics: Metrics
    failed: bool = False
    finished: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def finish(self) -> None:
        """Counts the answer once; cancels it if it has not ended, since its client reads no more."""
        if self.finished:
            return
        self.finished = True
        reason = self.answer.finish_reason or ("failed" if self.failed else "cancelled")
        self.answer.cancel()
        self.metrics.answered(self.answer, reason)

    async def whole(self, request: Request) -> ChatCompletion | None:
        """Waits for the end of the answer and builds the reply; None if the client has disconnected, which cancels it.

        Raises:
            RequestRefusedError: the model failed.
        """
        watch = asyncio.create_task(cancel_when_gone(request, self.answer))
        try:
            with refusing():
                pieces = [piece async for piece in self._pieces()]
        except Exception:
            self.failed = True
            raise
        finally:
            watch.cancel()
            self.finish()
        if (reason := self._reason()) is None:
            return None
        message = AnswerMessage(content="".join(text for text, _ in pieces))
        tokens = [token for _, tokens in pieces for token in tokens]
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.asked.model,
            choices=[Choice(message=message, finish_reason=reason, logprobs=self._logprobs(tokens))],
            usage=CompletionUsage.of(self.answer),
        )

    async def events(self) -> AsyncIterator[str]:
        """Yields server-sent events; a failure is the last one, without a `[DONE]` after it."""
        yield self._chunk(Delta(role="assistant", content=""))
        try:
            async for text, tokens in self._pieces():
                yield self._chunk(Delta(content=text), logprobs=self._logprobs(tokens))
        except Exception as error:
            failure = explain(error)
            if failure.kind == INTERNAL:
                logger.exception("an answer failed")
            self.failed = True
            self.metrics.failed(failure)
            self.finish()
            yield event(json.dumps(failure.body()))
            return
        self.finish()
        if (reason := self._reason()) is None:
            return
        yield self._chunk(Delta(), reason)
        if self._includes_usage:
            yield self._chunk(None, usage=CompletionUsage.of(self.answer))
        yield event("[DONE]")

    async def _pieces(self) -> AsyncIterator[tuple[str, list[AnswerLogprob]]]:
        """Yields pieces of text with the tokens that begin in each."""
        received = blank = 0
        async for piece in self.answer:
            begun = blank < received
            received += len(piece)
            text = piece if begun else piece.lstrip()
            if not begun:
                blank = received - len(text)
            if text:
                yield text, self._tokens(received, blank)

    def _tokens(self, received: int, blank: int) -> list[AnswerLogprob]:
        """Takes the tokens of the first `received` characters, without the blanks before the text."""
        taken = [token for token in self.answer.take_logprobs(received) if token.end > blank]
        return [token.strip_leading_space() if token.start < blank else token for token in taken]

    def _logprobs(self, tokens: Sequence[AnswerLogprob]) -> ChoiceLogprobs | None:
        return ChoiceLogprobs.of(tokens) if self.asked.logprobs else None

    @property
    def _includes_usage(self) -> bool:
        options = self.asked.stream_options
        return bool(options and options.include_usage)

    def _reason(self) -> FinishReason | None:
        reason = self.answer.finish_reason
        return None if reason == "cancelled" else reason

    def _chunk(
        self,
        delta: Delta | None,
        reason: FinishReason | None = None,
        usage: CompletionUsage | None = None,
        logprobs: ChoiceLogprobs | None = None,
    ) -> str:
        choices = []
        if delta is not None:
            choices.append(ChunkChoice(index=0, delta=delta, finish_reason=reason, logprobs=logprobs))
        chunk = ChatCompletionChunk(
            id=self.id,
            object="chat.completion.chunk",
            created=self.created,
            model=self.asked.model,
            choices=choices,
        )
        if self._includes_usage:
            chunk.usage = usage
        return event(chunk.model_dump_json(exclude_unset=True))


class EventStream(StreamingResponse):
    """A reply as server-sent events, which is finished however the connection ends."""

    media_type = "text/event-stream"

    def __init__(self, reply: Reply) -> None:
        """
        Args:
            reply: The answer.
        """
        # Proxies may neither cache nor buffer the events.
        super().__init__(reply.events(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reply.finish()


def event(data: str) -> str:
    """Formats a server-sent event."""
    return f"data: {data}\n\n"


async def cancel_when_gone(request: Request, answer: AnswerStream) -> None:
    """Cancels the answer when its client disconnects."""
    await wait_until_gone(request.receive)
    answer.cancel()
