"""Requests as clients really send them: harmless fields are taken, and an error names the field that is to blame."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletion
from transformers import RepetitionPenaltyLogitsProcessor

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from tests.llava.serve.openai.serving import MODEL, body, data_url, picture, user

HELLO = {"role": "user", "content": "Hello"}


def ask(client: OpenAI, *messages: Any, **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**body(*(messages or [HELLO]), max_tokens=8, **fields))


def text(completion: ChatCompletion) -> str:
    return completion.choices[0].message.content


def refused(client: OpenAI, *messages: Any, **fields: Any) -> tuple[str | None, str]:
    """The field and the words of a refusal."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, *messages, **fields)
    return caught.value.param, caught.value.body["message"]


@pytest.fixture(scope="module")
def hello(client: OpenAI) -> str:
    """The answer to a plain greeting."""
    return text(ask(client))


def part(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [fields]}


# What has no effect

HINT = {"type": "ephemeral"}


def test_hints_for_a_cache_are_taken_wherever_a_prompt_has_parts(client: OpenAI) -> None:
    plain = user("Hello")
    picture, words = plain["content"]
    hints = dict.fromkeys(("cache_control", "prompt_cache_breakpoint"), HINT)
    hinted = {"role": "user", "content": [{**picture, **hints}, {**words, **hints}], **hints}
    assert text(ask(client, hinted)) == text(ask(client, plain))


def test_hints_for_a_cache_are_taken_with_the_request(client: OpenAI, hello: str) -> None:
    hints = dict.fromkeys(("cache_control", "prompt_cache_options", "prompt_cache_retention"), HINT)
    assert text(ask(client, extra_body=hints)) == hello


EMPTY_FIELDS = {
    "refusal": "",
    "name": "",
    "audio": None,
    "function_call": None,
    "tool_calls": [],
    "annotations": [],
    "reasoning_content": "",
}


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_empty_fields_of_a_message_are_as_none(client: OpenAI, role: str) -> None:
    messages = [HELLO, {"role": "assistant", "content": "Hi"}, HELLO]
    given = [{**message, **EMPTY_FIELDS} if message["role"] == role else message for message in messages]
    assert text(ask(client, *given)) == text(ask(client, *messages))


# An assistant without content


@pytest.mark.parametrize("silent", [{}, {"content": None}, {"content": ""}, {"content": None, "refusal": ""}])
def test_an_assistant_may_have_said_nothing(client: OpenAI, silent: dict[str, Any]) -> None:
    asked = [HELLO, {"role": "assistant", **silent}, HELLO]
    assert text(ask(client, *asked)) == text(ask(client, HELLO, {"role": "assistant", "content": ""}, HELLO))


@pytest.mark.parametrize(
    "content", [{}, {"content": None}, {"content": [{"type": "refusal", "refusal": "I will not."}]}]
)
def test_a_refusal_is_what_the_assistant_said(client: OpenAI, content: dict[str, Any]) -> None:
    found = ask(client, HELLO, {"role": "assistant", "refusal": "I will not.", **content}, HELLO)
    plain = ask(client, HELLO, {"role": "assistant", "content": "I will not."}, HELLO)
    assert found.usage.prompt_tokens == plain.usage.prompt_tokens
    assert text(found) == text(plain)


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_others_must_have_said_something(client: OpenAI, role: str) -> None:
    param, words = refused(client, {"role": role, "content": None}, HELLO)
    assert param == "messages[0].content"
    assert words == "messages[0].content: should be text or a list of parts, got null"
    assert refused(client, {"role": role}, HELLO) == (param, "messages[0].content: Field required")


# Which field is to blame

URL = data_url()


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        (part(type="text", text="Hi", colour=1), "messages[0].content[0].colour", "knows no such field, got 1"),
        (part(type="text", text="Hi", image_url=URL), "messages[0].content[0].image_url", "knows no such field"),
        (part(type="text", text=5), "messages[0].content[0].text", "valid string, got 5"),
        (part(type="text"), "messages[0].content[0].text", "Field required"),
        (part(type="image_url"), "messages[0].content[0].image_url", "Field required"),
        (part(type="image_url", image_url=5), "messages[0].content[0].image_url", "text or an object with a url"),
        (part(type="image_url", image_url=None), "messages[0].content[0].image_url", "with a url, got null"),
        (part(type="image_url", image_url=URL, text="Hi"), "messages[0].content[0].text", "knows no such field"),
        (part(type="image_url", image_url={}), "messages[0].content[0].image_url.url", "Field required"),
        (part(type="image_url", image_url={"url": 5}), "messages[0].content[0].image_url.url", "valid string, got 5"),
        (
            part(type="image_url", image_url={"url": URL, "detail": 5}),
            "messages[0].content[0].image_url.detail",
            "valid string, got 5",
        ),
        (
            part(type="image_url", image_url={"url": URL, "image_url": 5}),
            "messages[0].content[0].image_url.image_url",
            "knows no such field, got 5",
        ),
        (part(text="Hi"), "messages[0].content[0].type", "Field required"),
        (part(type="video_url", video_url=URL), "messages[0].content[0]", "'text', 'image_url'"),
        ({"role": "user", "content": ["Hi"]}, "messages[0].content[0]", "got 'Hi'"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0].content", "text or a list of parts"),
        ({"role": "user", "content": "Hi", "refusal": "No"}, "messages[0].refusal", "only messages of the assistant"),
        ({"role": "user", "content": "Hi", "name": 5}, "messages[0].name", "valid string, got 5"),
        ({"role": "user", "content": "Hi", "colour": 1}, "messages[0].colour", "knows no such field, got 1"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            "messages[0].tool_calls",
            "not supported here",
        ),
        ({"role": "assistant", "content": None, "refusal": 5}, "messages[0].refusal", "valid string, got 5"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "No"}]}, "messages[0].content[0]", "'text'"),
    ],
)
def test_an_error_in_a_message_names_its_field(client: OpenAI, message: dict[str, Any], param: str, words: str) -> None:
    found = refused(client, message)
    assert found[0] == param
    assert found[1].startswith(f"{param}: ") and words in found[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": 5}, "stop"),
        ({"stream_options": {"include_usage": 5}}, "stream_options.include_usage"),
        ({"extra_body": {"qlip": {"enabled": 5}}}, "qlip.enabled"),
        ({"extra_body": {"qlip": 5}}, "qlip"),
        ({"metadata": 5}, "metadata"),
    ],
)
def test_an_error_in_a_nested_field_names_it(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    assert refused(client, **fields)[0] == param


# What is not to be had


@pytest.mark.parametrize(
    "wanted",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}],
    ids=lambda wanted: wanted["type"],
)
def test_a_format_of_the_answer_is_refused_with_the_way_out(client: OpenAI, wanted: dict[str, Any]) -> None:
    param, words = refused(client, response_format=wanted)
    assert param == "response_format"
    assert words == (
        'response_format: only {"type": "text"} is supported here; ask for JSON in the prompt and check it'
    )


@pytest.mark.parametrize("call", ["responses", "completions"])
def test_other_protocols_of_openai_are_refused_with_the_route_to_use(client: OpenAI, call: str) -> None:
    words = f"no /v1/{call}; send a chat request to /v1/chat/completions"
    with pytest.raises(openai.NotFoundError, match=words) as caught:
        if call == "responses":
            client.responses.create(model=MODEL, input="Hello")
        else:
            client.completions.create(model=MODEL, prompt="Hello")
    assert caught.value.code == "not_found"


# How tokens are chosen


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"min_p": 1}, {"top_k": 1, "min_p": 0.5}])
def test_one_token_to_sample_from_is_greedy(client: OpenAI, hello: str, fields: dict[str, Any]) -> None:
    assert text(ask(client, extra_body=fields | {"temperature": 2})) == hello


@pytest.mark.parametrize("top_p", [1e-46, 5e-324])
def test_a_share_that_float32_does_not_hold_is_greedy(client: OpenAI, hello: str, top_p: float) -> None:
    assert text(ask(client, extra_body={"temperature": 2}, top_p=top_p)) == hello


@pytest.mark.parametrize("penalty", [1.8, 5.0])
def test_a_repetition_penalty_counts_the_text_of_prompt_and_answer(
    engine: ChatEngine, client: OpenAI, penalty: float
) -> None:
    """The oracle is transformers' own penalty on plain forward passes, token by token."""
    answer = engine.submit(engine.question("Hello", 1), [picture()], Sampling(0, max_new_tokens=1))
    list(answer)
    images, ids, new = engine.vision.encode(answer.views), answer.row.prompt, list[int]()
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    while len(new) < 8 and not engine.end_tokens & {*new}:
        with torch.inference_mode():
            logits = engine.model(torch.cat([ids, torch.tensor(new, dtype=torch.long)])[None], images=images).logits
        seen = torch.tensor([*ids[ids >= 0].tolist(), *new])
        new.append(int(processor(seen[None], logits[:, -1].float()).argmax()))
    found = ask(client, user("Hello"), extra_body={"repetition_penalty": penalty})
    assert text(found) == engine.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert penalty < 5 or text(found) != text(ask(client, user("Hello")))
