"""Replies of the OpenAI chat protocol, whose `usage` also has the visual tokens saved and the seconds spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.logprobs import AnswerLogprob, TextLogprob


class PromptDetails(BaseModel):
    """Tokens of the prompt by kind."""

    text_tokens: int
    image_tokens: int
    cached_tokens: int


class ImageUsage(BaseModel):
    """Visual tokens of one image, and of the uniform grid on the same pixels."""

    tokens: int
    uniform_tokens: int


class VisualTokens(BaseModel):
    """Visual tokens of all images of a request."""

    tokens: int
    uniform_tokens: int
    tokens_saved: int
    first_pass_tokens: int = Field(description="of the pictures as the question was asked about them first, or 0")
    images: list[ImageUsage]


class Seconds(BaseModel):
    """Seconds spent in each step."""

    queue: float
    first_pass: float = Field(description="asking the batch's questions about the unsplit pictures")
    image: float
    prefill: float
    decode: float


class CompletionUsage(BaseModel):
    """Tokens and seconds of an answer."""

    prompt_tokens: int = Field(description="text and images")
    completion_tokens: int = Field(description="the end token included")
    total_tokens: int
    prompt_tokens_details: PromptDetails
    qlip: VisualTokens
    seconds: Seconds

    @classmethod
    def of(cls, answer: AnswerStream) -> CompletionUsage:
        """Builds the usage of an answer that has ended."""
        usage = answer.usage
        images = [ImageUsage(tokens=view.tokens, uniform_tokens=view.uniform_tokens) for view in answer.views]
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.generated_tokens,
            total_tokens=usage.prompt_tokens + usage.generated_tokens,
            prompt_tokens_details=PromptDetails(
                text_tokens=usage.text_tokens, image_tokens=usage.visual_tokens, cached_tokens=usage.cached_tokens
            ),
            qlip=VisualTokens(
                tokens=usage.visual_tokens,
                uniform_tokens=usage.uniform_tokens,
                tokens_saved=usage.uniform_tokens - usage.visual_tokens,
                first_pass_tokens=usage.first_pass_tokens,
                images=images,
            ),
            seconds=Seconds(**usage.seconds),
        )


FinishReason = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A candidate token."""

    token: str
    logprob: float = Field(description="of the model's own logits; -9999 for any lower one")
    bytes: list[int] | None = Field(description="in UTF-8; null for a special token")

    @classmethod
    def of(cls, token: TextLogprob) -> TopLogprob:
        """Converts a token."""
        return cls(token=token.text, logprob=token.logprob, bytes=None if token.bytes is None else list(token.bytes))


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="the likeliest ones in its place, best first")


class ChoiceLogprobs(BaseModel):
    """Tokens whose text begins in this part of the content."""

    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[AnswerLogprob]) -> ChoiceLogprobs:
        """Converts tokens."""
        return cls(
            content=[
                TokenLogprob(
                    **dict(TopLogprob.of(token.token)), top_logprobs=[TopLogprob.of(each) for each in token.top]
                )
                for token in tokens
            ],
            refusal=None,
        )


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(BaseModel):
    """A complete answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


class Delta(BaseModel):
    """The part of the message in one chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The part of the answer in one chunk."""

    index: Literal[0]
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a streamed answer; fields that are not set are left out."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None


class Model(BaseModel):
    """A name under which the model is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llava"
    max_model_len: int = Field(description="the context, in tokens")


class ModelList(BaseModel):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The server accepts requests."""

    status: Literal["ok"] = "ok"


class ErrorDetail(BaseModel):
    """Kind and message of an error."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(BaseModel):
    """A refusal or failure; `text` and `error_code` are for LLaVA's clients."""

    error: ErrorDetail
    text: str
    error_code: int
