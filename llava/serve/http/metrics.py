"""Prometheus metrics of one server, in a separate registry.

Tokens and times come from each answer's `usage`; the queue's length is read from the engine with the metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.http.failures import Failure

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.answer_stream import AnswerStream

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SECONDS_PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)

COUNTED = "llava.counted"  # in a request's scope: its reply is counted already


class Metrics:
    """Counters and histograms of one application."""

    def __init__(self, engine: ChatEngine) -> None:
        """
        Args:
            engine: The engine whose queue is measured.
        """
        self.registry = CollectorRegistry()
        self.responses = self._counter("http_responses", "Replies, by route and status", "route", "status")
        self.answers = self._counter("answers", "Answers that have ended, by reason", "finish_reason")
        self.errors = self._counter("errors", "Requests refused or failed, by kind", "kind")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts: text and visual", "kind")
        self.generated_tokens = self._counter("generated_tokens", "Tokens of answers")
        self.saved = self._counter(
            "visual_tokens_saved", "Visual tokens saved against the uniform grid on equal pixels"
        )
        self.queue = self._histogram("queue_seconds", "From submission until the model starts on a request")
        self.first_token = self._histogram("time_to_first_token_seconds", "From submission to the first token")
        self.per_token = self._histogram("seconds_per_token", "Of each token after the first", SECONDS_PER_TOKEN)
        self.whole = self._histogram("request_seconds", "From submission to the end of the answer")
        for name, help, read in (
            ("requests_waiting", "Requests that wait for the model", lambda: engine.waiting),
            ("requests_running", "Requests that are being answered", lambda: engine.running),
            ("prefix_cache_bytes", "Keys and values of earlier prompts", lambda: engine.prefixes.bytes),
            ("prefix_cache_limit_bytes", "Most bytes of these", lambda: engine.prefixes.most_bytes),
        ):
            Gauge(f"llava_{name}", help, registry=self.registry).set_function(read)

    def answered(self, answer: AnswerStream, reason: str) -> None:
        """Counts an answer; observes the times of one that was completed.

        Args:
            answer: An answer that has ended, or that no client reads any more.
            reason: "stop", "length", "cancelled" or "failed".
        """
        usage = answer.usage
        self.answers.labels(reason).inc()
        self.prompt_tokens.labels("text").inc(usage.text_tokens)
        self.prompt_tokens.labels("visual").inc(usage.visual_tokens)
        self.generated_tokens.inc(answer.row.generated)
        self.saved.inc(max(0, usage.uniform_tokens - usage.visual_tokens))
        if reason not in ("stop", "length"):
            return
        before = usage.queue_seconds + usage.first_pass_seconds + usage.image_seconds + usage.prefill_seconds
        self.queue.observe(usage.queue_seconds)
        self.first_token.observe(before)
        self.whole.observe(before + usage.decode_seconds)
        if usage.generated_tokens > 1:
            self.per_token.observe(usage.seconds_per_token)

    def failed(self, failure: Failure) -> None:
        """Counts a request that was refused, or whose answer failed."""
        self.errors.labels(failure.kind).inc()

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Encodes the metrics; returns the text and its content type.

        Args:
            accept: The request's Accept header; chooses between Prometheus' formats.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # an invalid version
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"llava_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"llava_{name}", help, buckets=buckets, registry=self.registry)


class CountResponses:
    """ASGI middleware: counts replies by route and status; the route is "none" for a request that reached no route.

    In an application and in one mounted there, the outer one counts, so that each reply counts once.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """
        Args:
            app: The application.
            metrics: Gets the counts.
        """
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http" or COUNTED in scope:
            await self.app(scope, receive, send)
            return
        scope[COUNTED] = True

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A mount's path is empty, and stays where no route in the mounted application matches.
                route = getattr(scope.get("route"), "path", "") or "none"
                self.metrics.responses.labels(route, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, count)
