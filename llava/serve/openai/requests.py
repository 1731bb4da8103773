"""Requests of the OpenAI chat protocol, as far as this server supports it.

A field is accepted if the answer follows it, or if it does not affect the answer (`user`, `metadata`, `store`). A field
that would change the answer but is not supported (`tools`, `response_format`) is accepted with a neutral value only. An
unknown field is refused unless it is empty: a client would not notice an option that is silently dropped. Validation
stops at the first error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava.serve.engine.params import MAX_LOGPROBS, Sampling
from llava.serve.openai.fields import EMPTY, MAX_FIELDS, MAX_INT, QLIPFields, StrictFields

MAX_STOPS = 4
MAX_ITEMS = 1000  # messages of a request, parts of a message


def _only(*allowed: Any, way_out: str = "") -> Any:
    """Builds the type of a field of which only some values are supported."""

    def check(value: Any) -> Any:
        if any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in allowed):
            return value
        words = " or ".join(json.dumps(known) for known in allowed if known not in EMPTY)
        words = f"only {words} is" if words else "this is not"
        raise PydanticCustomError("unsupported_value", "{words} supported here{more}", {"words": words, "more": more})

    more = way_out and f"; {way_out}"
    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(allowed)})]


def _or_text(wrap: Callable[[str], Any], full: type, name: str, may_be_null: bool = False) -> Callable[[Any], Any]:
    """Builds the validator of a field that may be given as text instead of its full form."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return wrap(value)
        if isinstance(value, full) or (value is None and may_be_null):
            return value
        raise PydanticCustomError("wrong_type", "should be text or {name}", {"name": name})

    return expand


class ImageURL(StrictFields):
    """A picture."""

    url: str = Field(description="`data:image/...;base64,...`, or http(s) where the server allows its host")
    detail: str | None = Field(None, description="accepted, without effect; see `qlip`")


class _Cacheable(StrictFields):
    """A part of a prompt with cache hints, which do not affect the answer."""

    cache_control: Any = Field(None, description="accepted, without effect")
    prompt_cache_breakpoint: Any = Field(None, description="accepted, without effect")


class TextPart(_Cacheable):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImagePart(_Cacheable):
    """Image of a message; images come before the message's text, in their order."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageURL,
        BeforeValidator(
            _or_text(lambda url: {"url": url}, dict, "an object with a url"), json_schema_input_type=str | ImageURL
        ),
    ]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_ITEMS)]


def _describe_optional_content(schema: dict[str, Any]) -> None:
    """Makes `content` optional in the JSON schema of the assistant's messages."""
    schema["maxProperties"] = MAX_FIELDS
    schema["required"] = [name for name in schema["required"] if name != "content"]
    schema["properties"]["content"]["anyOf"].append({"type": "null"})
    given = {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}}
    schema["anyOf"] = [given, {"properties": {"role": {"const": "assistant"}}}]


def _refusal_as_text(part: Any) -> Any:
    """Converts a part of type "refusal", of the assistant's messages only, to text; returns others unchanged."""
    is_refusal = isinstance(part, dict) and part.keys() == {"type", "refusal"} and part["type"] == "refusal"
    return {"type": "text", "text": part["refusal"]} if is_refusal else part


class Message(_Cacheable):
    """One message of a conversation; `content` may be null or missing in the assistant's messages only."""

    model_config = ConfigDict(json_schema_extra=_describe_optional_content)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Parts,
        FailFast(),
        BeforeValidator(
            _or_text(lambda text: [{"type": "text", "text": text}], list, "a list of parts"),
            json_schema_input_type=str | Parts,
        ),
    ]
    name: str | None = Field(None, description="accepted, without effect")
    refusal: str | None = Field(None, description="of an assistant's message without content: its text")

    audio: _only(None, {}) = None  # type: ignore[valid-type]
    function_call: _only(None, {}) = None  # type: ignore[valid-type]
    tool_calls: _only(None, []) = None  # type: ignore[valid-type]

    @model_validator(mode="before")
    @classmethod
    def _complete_assistant(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("role") != "assistant":
            return value
        content, refusal = value.get("content"), value.get("refusal")
        if content is None:
            content = refusal if isinstance(refusal, str) else ""
        elif isinstance(content, list):
            content = [_refusal_as_text(part) for part in content]
        return value | {"content": content}

    @field_validator("refusal")
    @classmethod
    def _check_refusal(cls, refusal: str | None, info: ValidationInfo) -> str | None:
        if refusal and info.data.get("role") != "assistant":
            raise PydanticCustomError("unsupported_value", "only messages of the assistant have a refusal")
        return refusal

    @property
    def text(self) -> str:
        """The text parts, one per line."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))


class StreamOptions(StrictFields):
    """Additional content of a stream."""

    include_usage: bool | None = Field(None, description="adds a last chunk with the usage")
    include_obfuscation: bool | None = Field(None, description="accepted, without effect")


StopText = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[StopText], Field(max_length=MAX_STOPS)]


class ChatRequest(StrictFields):
    """A request for `/v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=MAX_ITEMS)
    temperature: float | None = Field(None, ge=0, le=2, description=f"default {Sampling.temperature}; 0 is greedy")
    top_p: float | None = Field(None, ge=0, le=1, description="0 is greedy")
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT, description="old name of `max_completion_tokens`")
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_INT,
        description=f"longest answer; by default {Sampling.max_new_tokens}, or what the context leaves",
    )
    stop: Annotated[
        Stops | None,
        BeforeValidator(
            _or_text(lambda text: [text], list, "a list of texts", may_be_null=True),
            json_schema_input_type=StopText | Stops | None,
        ),
    ] = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="makes a sampled answer repeatable")
    top_k: int | None = Field(None, ge=-1, le=MAX_INT, description="number of likeliest tokens sampled; -1 and 0: all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="sample no token less likely than this share of the likeliest one's probability"
    )
    repetition_penalty: float | None = Field(
        None, gt=0, description="above 1 makes the tokens of prompt and answer less likely, below 1 likelier"
    )
    logprobs: bool | None = Field(None, description="adds each token's log-probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="with `logprobs`: number of likeliest tokens listed for each position"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    qlip: QLIPFields | None = None

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    cache_control: Any = None
    parallel_tool_calls: bool | None = None

    n: _only(None, 1) = None  # type: ignore[valid-type]
    presence_penalty: _only(None, 0) = None  # type: ignore[valid-type]
    frequency_penalty: _only(None, 0) = None  # type: ignore[valid-type]
    logit_bias: _only(None, {}) = None  # type: ignore[valid-type]
    modalities: _only(None, ["text"]) = None  # type: ignore[valid-type]
    response_format: _only(  # type: ignore[valid-type]
        None, {}, {"type": "text"}, way_out="ask for JSON in the prompt and check it"
    ) = None
    tools: _only(None, []) = None  # type: ignore[valid-type]
    tool_choice: _only(None, "", "none", "auto") = None  # type: ignore[valid-type]
    functions: _only(None, []) = None  # type: ignore[valid-type]
    function_call: _only(None, "", "none", "auto") = None  # type: ignore[valid-type]


def field_path(loc: Sequence[str | int], body: Any, missing: bool) -> str:
    """Formats the path of an invalid field, such as `messages[0].content`.

    Args:
        loc: pydantic's location of the error; may hold names of types, which are not fields.
        body: The request.
        missing: Whether the field is not in the request.
    """
    path = ""
    for i, key in enumerate(loc):
        if isinstance(key, int):
            if not isinstance(body, list) or key >= len(body):
                continue
            path, body = f"{path}[{key}]", body[key]
        elif i >= 2 and loc[i - 2] == "content" and isinstance(loc[i - 1], int):
            continue  # the type of a part, which pydantic puts after its index; a field may have the same name
        elif isinstance(body, dict) and (key in body or (missing and i == len(loc) - 1)):
            path, body = f"{path}.{key}", body.get(key)
    return path.lstrip(".")
