"""Log-probabilities are those of a plain forward pass, belong to the text beside them, and come in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import openai
import pytest
import torch
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.chat_completion import ChoiceLogprobs
from torch import Tensor

from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.logprobs import StepLogprobs
from llava.serve.engine.params import Sampling
from tests.llava.serve.openai.serving import DEADLINE, QUESTION, Gate, body, picture

ASKED: dict[str, Any] = {"logprobs": True, "top_logprobs": 4}


def ask(client: OpenAI, **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**body(**fields))


def listed(client: OpenAI, **fields: Any) -> tuple[str, ChoiceLogprobs]:
    """The content of an answer and its tokens."""
    (choice,) = ask(client, **{**ASKED, **fields}).choices
    return choice.message.content, choice.logprobs


@pytest.fixture(scope="module")
def plain(client: OpenAI) -> tuple[str, ChoiceLogprobs]:
    """The greedy answer and its tokens."""
    return listed(client)


def joined(logprobs: ChoiceLogprobs) -> str:
    return "".join(token.token for token in logprobs.content)


def forward(engine: ChatEngine, ids: list[int]) -> Tensor:
    """float32 (tokens, V): log-softmax of the model's logits where each of an answer's tokens is chosen."""
    answer = engine.submit(engine.question(QUESTION, 1), [picture()], Sampling(0, max_new_tokens=1))
    list(answer)
    prompt = torch.cat([answer.row.prompt, torch.tensor(ids)])
    with torch.inference_mode():
        logits = engine.model(prompt[None], images=engine.vision.encode(answer.views)).logits[0]
    return logits[-len(ids) - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.5, "seed": 4, "max_tokens": 12},
        {"temperature": 1.5, "seed": 4, "max_tokens": 12, "extra_body": {"repetition_penalty": 1.5, "top_k": 9}},
    ],
    ids=["greedy", "sampled", "penalized"],
)
def test_the_values_are_the_log_softmax_of_a_plain_forward_pass(
    engine: ChatEngine, client: OpenAI, fields: dict[str, Any]
) -> None:
    _, logprobs = listed(client, **fields)
    ids = spelled(engine, [token.token for token in logprobs.content])
    expected = forward(engine, ids)
    found = torch.tensor([token.logprob for token in logprobs.content])
    torch.testing.assert_close(found, expected.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=1e-3, rtol=1e-3)
    best = torch.tensor([[other.logprob for other in token.top_logprobs] for token in logprobs.content])
    torch.testing.assert_close(best, expected.topk(4).values, atol=1e-3, rtol=1e-3)


def spelled(engine: ChatEngine, tokens: list[str]) -> list[int]:
    """The ids of an answer's tokens by their texts; encoding gives the first one its blank."""
    first, *others = tokens
    names = ["\u2581" + first, *(other.replace(" ", "\u2581") for other in others)]
    return engine.tokenizer.convert_tokens_to_ids(names)


# Which tokens


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_tokens_join_to_the_content(client: OpenAI, temperature: float) -> None:
    fields = {**ASKED, "temperature": temperature, "seed": 1, "max_tokens": 20}
    whole, logprobs = listed(client, **fields)
    assert joined(logprobs) == whole
    assert whole and whole == whole.lstrip()
    assert b"".join(bytes(token.bytes) for token in logprobs.content) == whole.encode()
    chunks: list[ChatCompletionChunk] = list(ask(client, stream=True, **fields))
    first, *middle, last = [chunk.choices[0] for chunk in chunks]
    assert first.logprobs is last.logprobs is None
    assert all(joined(choice.logprobs) == choice.delta.content for choice in middle)
    tokens = [token for choice in middle for token in choice.logprobs.content]
    assert tokens == logprobs.content


def test_the_clients_stream_helper_collects_them(client: OpenAI, plain: tuple[str, ChoiceLogprobs]) -> None:
    with client.chat.completions.stream(**body(**ASKED)) as stream:
        (choice,) = stream.get_final_completion().choices
    assert joined(choice.logprobs) == choice.message.content
    assert choice.logprobs.content == plain[1].content


@pytest.mark.parametrize("stream", [False, True])
def test_the_blanks_that_an_answer_begins_with_are_not_listed(engine: ChatEngine, client: OpenAI, stream: bool) -> None:
    """They are cut off the content: whole tokens, and the blank of the first word."""
    ids = engine.tokenizer.convert_tokens_to_ids(["<0x0A>", "\u2581", "\u2581red", "\u2581and", "<0x0A>"])
    assert engine.tokenizer.unk_token_id not in ids

    def say(batch: Sequence[AnswerStream]) -> None:
        for row in (answer.row for answer in batch):
            for token in ids:
                row.take(token, StepLogprobs(-1.0, ((token, -1.0),)))
            row.finish("stop")

    with patch.object(engine, "_generate", say):
        found = ask(client, stream=stream, **ASKED)
        choices = [choice for chunk in found for choice in chunk.choices] if stream else list(found.choices)
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [token.token for token in tokens] == ["red", " and", "\n"]
    assert [bytes(token.bytes) for token in tokens] == [b"red", b" and", b"\n"]
    assert [token.top_logprobs[0].token for token in tokens] == ["red", " and", "\n"]
    said = [choice.delta.content or "" for choice in choices] if stream else [choices[0].message.content]
    assert "".join(said) == "red and\n"


def test_the_end_token_is_not_listed(client: OpenAI) -> None:
    completion = ask(client, **ASKED)
    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert len(choice.logprobs.content) == completion.usage.completion_tokens - 1


@pytest.mark.parametrize(("stop", "stream"), [(" and", False), ("tri", True), ("angle and a", False), ("angle", True)])
def test_tokens_of_a_stop_string_are_not_listed(
    client: OpenAI, plain: tuple[str, ChoiceLogprobs], stop: str, stream: bool
) -> None:
    """One whose text begins before it, is."""
    whole, logprobs = plain
    ends = [len("".join(token.token for token in logprobs.content[: i + 1])) for i in range(len(logprobs.content))]
    cut = whole.index(stop)
    expected = [token for token, end in zip(logprobs.content, [0, *ends], strict=False) if end < cut]
    found = ask(client, stop=stop, stream=stream, **ASKED)
    if stream:
        choices = [choice for chunk in found for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == whole[:cut]
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    else:
        assert found.choices[0].message.content == whole[:cut]
        tokens = found.choices[0].logprobs.content
    assert tokens == expected


@pytest.mark.parametrize("count", [0, 1, 20, None])
def test_as_many_alternatives_are_listed_as_asked_for(client: OpenAI, count: int | None) -> None:
    _, logprobs = listed(client, top_logprobs=count, max_tokens=4)
    for token in logprobs.content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == (count or 0)
        assert values == sorted(values, reverse=True)
        if count:  # a greedy token is the likeliest
            assert (token.top_logprobs[0].token, values[0]) == (token.token, token.logprob)


def test_a_special_token_among_the_alternatives_is_named_and_has_no_bytes(client: OpenAI) -> None:
    _, logprobs = listed(client, top_logprobs=20)
    special = [other for token in logprobs.content for other in token.top_logprobs if other.token == "</s>"]
    assert special
    assert all(other.bytes is None for other in special)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_listed_unasked(client: OpenAI, stream: bool) -> None:
    found = ask(client, stream=stream, logprobs=False, max_tokens=3)
    choices = [choice for chunk in found for choice in chunk.choices] if stream else found.choices
    assert all(choice.logprobs is None and "logprobs" in choice.model_fields_set for choice in choices)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_logprobs": 3}, "top_logprobs is 3, which needs logprobs: true"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs is 3, which needs logprobs: true"),
        ({"top_logprobs": 21, "logprobs": True}, "less than or equal to 20, got 21"),
        ({"top_logprobs": -1, "logprobs": True}, "greater than or equal to 0, got -1"),
    ],
)
def test_impossible_numbers_of_alternatives_are_refused(client: OpenAI, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(client, **fields)
    assert caught.value.param == "top_logprobs"


# Batches


def test_rows_that_ask_and_rows_that_do_not_share_a_batch(engine: ChatEngine) -> None:
    settings = [
        Sampling(0, logprobs=2, max_new_tokens=9),
        Sampling(1.0, seed=3, max_new_tokens=9),
        Sampling(1.0, seed=4, logprobs=0, max_new_tokens=5),
        Sampling(0, logprobs=7, max_new_tokens=7),
    ]

    def submit(row: Sampling) -> Any:
        return engine.submit(engine.question(QUESTION, 1), [picture()], row)

    def read(answer: Any) -> tuple[str, list[tuple[str, float, list[tuple[str, float]]]]]:
        text = "".join(answer)
        tokens = answer.take_logprobs(len(text))
        return text, [(t.token.text, t.token.logprob, [(o.text, o.logprob) for o in t.top]) for t in tokens]

    alone = [read(submit(row)) for row in settings]
    with Gate(engine) as gate:
        first = submit(settings[0])
        assert gate.reached.wait(DEADLINE)
        answers = [submit(row) for row in settings]
        gate.opened.set()
        together = [read(answer) for answer in answers]
        assert read(first)[0] == alone[0][0]
        assert gate.batches == [1, len(settings)]
    for (text, tokens), (expected_text, expected) in zip(together, alone, strict=True):
        assert text == expected_text
        assert [token for token, _, _ in tokens] == [token for token, _, _ in expected]
        assert [value for _, value, _ in tokens] == pytest.approx([value for _, value, _ in expected], abs=1e-3)
    counts = [{len(top) for _, _, top in tokens} for _, tokens in together]
    assert counts == [{2}, set(), {0}, {7}]
