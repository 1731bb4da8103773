"""Converts chat requests of the OpenAI protocol to the engine's prompts, images and settings, and submits them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llava.images import read_image
from llava.serve.decoding.pool import UnopenedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prompting import Turn, build_conversation
from llava.serve.http.failures import Failure, shorten_value
from llava.serve.http.limits import RequestLimits
from llava.serve.http.metrics import Metrics
from llava.serve.openai.errors import RequestRefusedError, refusing
from llava.serve.openai.fields import QLIPFields
from llava.serve.openai.requests import ChatRequest, ImagePart
from llava.serve.openai.stream import Reply


@dataclass(frozen=True)
class APISettings:
    """Names, limits and keys of the API."""

    model_names: tuple[str, ...]
    """The model's names for clients; at least one."""
    limits: RequestLimits = RequestLimits()
    """What one request may hold."""
    api_keys: tuple[str, ...] = ()
    """Keys of clients; without any, every request is accepted."""
    allow_loopback: bool = False
    """Whether image URLs may name this machine."""

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ValueError(f"a served model needs a name, got {self.model_names}")


class Chat:
    """Answers chat requests with an engine."""

    def __init__(self, engine: ChatEngine, settings: APISettings, metrics: Metrics) -> None:
        """
        Args:
            engine: Answers the requests.
            settings: The model's names and the limits of requests.
            metrics: Counts answers and failures.
        """
        self.engine, self.settings, self.metrics = engine, settings, metrics

    async def begin(self, asked: ChatRequest) -> Reply:
        """Submits a request to the engine.

        Raises:
            RequestRefusedError: the request is invalid, or the engine cannot take it.
        """
        self.check_model(asked.model)
        self._check_sizes(asked)
        sampling, given = sampling_of(asked)
        with refusing("qlip"):
            quadtree = self.engine.vision.settings(qlip_of(asked.qlip))
        with refusing("messages"):
            conversation, images = build_conversation(self.engine, self._turns(asked))
        with refusing():
            answer = await self.engine.asubmit(conversation, images, sampling, quadtree, shorten=not given)
        settings = asked.model_copy(update={"messages": []})  # the messages hold images, and are no longer needed
        return Reply(answer, settings, self.metrics)

    def check_model(self, name: str, param: str | None = "model") -> None:
        """Raises RequestRefusedError unless the model is served under this name."""
        if name not in self.settings.model_names:
            served = ", ".join(self.settings.model_names)
            message = f"no model {shorten_value(name)} here; this server has {served}"
            raise RequestRefusedError(Failure(404, "model_not_found", message), param)

    def _check_sizes(self, asked: ChatRequest) -> None:
        images = sum(isinstance(part, ImagePart) for message in asked.messages for part in message.content)
        characters = sum(len(message.text) for message in asked.messages)
        with refusing("messages"):
            self.settings.limits.check(images, characters)

    def _turns(self, asked: ChatRequest) -> list[Turn]:
        """Converts the messages; the engine opens their images when it has room for the request."""
        turns = []
        for i, message in enumerate(asked.messages):
            images = tuple(
                self._image(part.image_url.url, f"messages[{i}].content[{j}].image_url")
                for j, part in enumerate(message.content)
                if isinstance(part, ImagePart)
            )
            role = "system" if message.role == "developer" else message.role
            turns.append(Turn(role, message.text, images))
        return turns

    def _image(self, url: str, param: str) -> UnopenedImage:
        limits = self.settings.limits
        read = partial(
            read_image,
            url,
            limits.image,
            allow_paths=False,
            allow_urls=bool(limits.media_hosts),
            allow_loopback=self.settings.allow_loopback,
            allowed_hosts=limits.media_hosts,
        )
        return UnopenedImage(read, limits.image, partial(refusing, param))


def sampling_of(asked: ChatRequest) -> tuple[Sampling, bool]:
    """Builds the sampling settings; says also whether the request limits the answer's length.

    Raises:
        RequestRefusedError: fields contradict each other.
    """
    longest = {value for value in (asked.max_tokens, asked.max_completion_tokens) if value is not None}
    with refusing("max_tokens"):
        if len(longest) > 1:
            raise ValueError(
                f"max_tokens is {asked.max_tokens}, but max_completion_tokens is {asked.max_completion_tokens}; "
                "give one of them"
            )
    with refusing("stream_options"):
        if asked.stream_options is not None and not asked.stream:
            raise ValueError("stream_options come with stream=true only")
    with refusing("top_logprobs"):
        if asked.top_logprobs and not asked.logprobs:
            raise ValueError(f"top_logprobs is {asked.top_logprobs}, which needs logprobs: true")
    temperature = Sampling.temperature if asked.temperature is None else asked.temperature
    sampling = Sampling(
        temperature=0.0 if asked.top_p == 0 else temperature,
        top_p=asked.top_p or None,
        max_new_tokens=max(longest, default=Sampling.max_new_tokens),
        stop=tuple(asked.stop or ()),
        seed=asked.seed,
        top_k=Sampling.top_k if asked.top_k is None else asked.top_k,
        min_p=Sampling.min_p if asked.min_p is None else asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    return sampling, bool(longest)


def qlip_of(fields: QLIPFields | None) -> QLIPOptions:
    """Builds the settings of the vision tower."""
    if fields is None:
        return QLIPOptions()
    return QLIPOptions(fields.enabled, fields.alpha, fields.max_tokens, fields.image_size, fields.budget)
