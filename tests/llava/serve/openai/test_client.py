"""OpenAI's own client gets the engine's answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llava.mm_utils import tokenizer_image_token
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.conftest import KEY
from tests.llava.serve.openai.replies import ask, text
from tests.llava.serve.openai.serving import (
    DEADLINE,
    MODEL,
    QUESTION,
    Gate,
    api,
    body,
    data_url,
    loaded,
    picture,
    user,
)

QUESTIONS = [QUESTION, "How many shapes are there?"]


@pytest.fixture
def many(served: tuple[ChatEngine, str]) -> Callable[[list[dict[str, Any]]], list[ChatCompletion]]:
    """Asks all requests at once."""

    def ask(requests: list[dict[str, Any]]) -> list[ChatCompletion]:
        async def gather() -> list[ChatCompletion]:
            async with AsyncOpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
                return await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))

        return asyncio.run(gather())

    return ask


def joined(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# The answer


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_greedy_answer_is_the_engines_own(engine: ChatEngine, client: OpenAI, question: str) -> None:
    completion = ask(client, user(question))
    assert text(completion) == engine.ask(question, [picture()])
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == MODEL


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: OpenAI, answer: ChatCompletion) -> None:
    chunks = list(ask(client, stream=True))
    assert joined(chunks) == text(answer)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_asynchronous_client_gets_the_same(served: tuple[ChatEngine, str], answer: ChatCompletion) -> None:
    async def both() -> tuple[ChatCompletion, list[ChatCompletionChunk]]:
        async with AsyncOpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
            whole = await client.chat.completions.create(**body())
            return whole, [chunk async for chunk in await client.chat.completions.create(**body(stream=True))]

    whole, chunks = asyncio.run(both())
    assert text(whole) == joined(chunks) == text(answer)


def test_the_clients_stream_helper_puts_the_answer_together(client: OpenAI, answer: ChatCompletion) -> None:
    with client.chat.completions.stream(**body(stream_options={"include_usage": True})) as stream:
        completion = stream.get_final_completion()
    assert text(completion) == text(answer)
    assert completion.usage.total_tokens == answer.usage.total_tokens


def test_a_dialogue_reaches_the_model_in_its_prompt_format(engine: ChatEngine, client: OpenAI) -> None:
    """The oracle is the conversation written by hand."""
    conversation = engine.new_conversation()
    conversation.system = "Answer in short."
    said = ["<image>\nHow many shapes are there?", "3", "What is in the picture?", None]
    for i, message in enumerate(said):
        conversation.append_message(conversation.roles[i % 2], message)
    oracle = engine.submit(conversation, [picture()], Sampling(temperature=0))
    expected = "".join(oracle).strip()
    completion = ask(
        client,
        {"role": "system", "content": "Answer in short."},
        user("How many shapes are there?"),
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": [{"type": "text", "text": "What is in the picture?"}]},
    )
    assert text(completion) == expected
    assert completion.usage.prompt_tokens == oracle.usage.prompt_tokens
    developer = ask(client, {"role": "developer", "content": "Answer in short."}, user(), max_tokens=1)
    assert developer.usage.prompt_tokens < completion.usage.prompt_tokens


def test_an_answer_can_be_sent_back_as_the_client_holds_it(client: OpenAI, answer: ChatCompletion) -> None:
    first = answer.choices[0].message
    again = ask(client, user(), first.model_dump(), {"role": "user", "content": "How many shapes are there?"})
    plain = ask(
        client,
        user(),
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "How many shapes are there?"},
    )
    assert text(again) == text(plain)


def test_several_pictures_are_shown_in_their_order(engine: ChatEngine, client: OpenAI) -> None:
    urls = [data_url(path.read_bytes()) for path in demo_picture_paths()[:2]]
    completion = ask(client, user(QUESTION, *urls))
    assert text(completion) == engine.ask(QUESTION, [picture(0), picture(1)])
    assert [image["tokens"] for image in completion.usage.qlip["images"]] == [
        engine.vision.prepare(picture(i), engine.vision.settings()).tokens for i in range(2)
    ]


def test_text_alone_needs_no_picture(client: OpenAI) -> None:
    completion = ask(client, {"role": "user", "content": "Hello"})
    assert completion.usage.prompt_tokens_details.image_tokens == 0
    assert completion.usage.qlip["images"] == []


def test_the_forms_of_a_picture_are_the_same(client: OpenAI) -> None:
    expected = text(ask(client, max_tokens=3))
    details = ("auto", "low", "high", "original", "finest", "")
    for url in (data_url(), *({"url": data_url(), "detail": detail} for detail in details)):
        parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": url}]
        assert text(ask(client, {"role": "user", "content": parts}, max_tokens=3)) == expected, url


# How it is chosen, and where it ends


def test_answers_asked_for_together_are_as_they_are_alone(
    engine: ChatEngine, client: OpenAI, many: Callable[..., list[ChatCompletion]]
) -> None:
    urls = [data_url(path.read_bytes()) for path in demo_picture_paths()]
    requests = [body(user(question, url), max_tokens=6) for question, url in zip(QUESTIONS * 2, urls, strict=False)]
    requests += [
        body(temperature=1.0, seed=7, max_tokens=5),
        body(max_tokens=6, extra_body={"qlip": {"enabled": False}}),
    ]
    alone = [client.chat.completions.create(**request) for request in requests]
    with Gate(engine, opens_at=len(requests)) as gate:
        together = many(requests)
    assert [text(completion) for completion in together] == [text(completion) for completion in alone]
    assert sum(gate.batches) == len(requests)
    assert len(gate.batches) < len(requests)  # some joined together


def test_a_seed_repeats_a_sampled_answer(client: OpenAI) -> None:
    hello = {"role": "user", "content": "Hello"}
    answers = [text(ask(client, hello, temperature=2, seed=seed, max_tokens=12)) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


def test_a_top_p_of_nothing_is_greedy(client: OpenAI, answer: ChatCompletion) -> None:
    for top_p in (0, 1e-6):
        assert text(ask(client, temperature=2, top_p=top_p)) == text(answer)


@pytest.mark.parametrize(
    ("stop", "stream"), [(" and", False), ([" and"], False), (["nowhere", " and", "square"], True)]
)
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    client: OpenAI, answer: ChatCompletion, stop: Any, stream: bool
) -> None:
    whole = text(answer)
    assert " and" in whole
    found = ask(client, stop=stop, stream=stream)
    pieces = joined(list(found)) if stream else text(found)
    assert pieces == whole.split(" and")[0]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_as_long_as_asked_for(client: OpenAI, answer: ChatCompletion, name: str) -> None:
    completion = ask(client, **{name: 3})
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 3
    assert text(answer).startswith(text(completion))


def test_without_a_length_the_context_decides() -> None:
    """A context with room for five tokens; asking for six is refused with the numbers."""
    tokenizer, model, processor, _ = loaded()
    engine = ChatEngine(tokenizer, model, processor, 2048)
    prompt = engine.submit(engine.question(QUESTION, 1), [picture()], Sampling(temperature=0)).usage.prompt_tokens
    engine.close()
    with api(ChatEngine(tokenizer, model, processor, prompt + 5)) as (_, http_client):
        client = OpenAI(base_url=f"{http_client.base_url}/v1", api_key="none", max_retries=0)
        completion = ask(client)
        assert completion.usage.completion_tokens == 5
        assert completion.choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match=f"up to 6 exceed .* of {prompt + 5}") as caught:
            ask(client, max_tokens=6)
        assert caught.value.code == "context_length_exceeded"


# What it cost


@pytest.mark.parametrize(
    "options",
    [{}, {"enabled": False}, {"enabled": True, "alpha": 0.3}, {"max_tokens": 70}, {"image_size": 224, "alpha": 0.0}],
)
def test_the_usage_counts_what_the_model_sees(engine: ChatEngine, client: OpenAI, options: dict[str, Any]) -> None:
    view = engine.vision.prepare(picture(), engine.vision.settings(QLIPOptions(**options)))
    usage = ask(client, extra_body={"qlip": options}, max_tokens=2).usage
    prompt = tokenizer_image_token(engine.question(QUESTION, 1).get_prompt(), engine.tokenizer)
    assert usage.prompt_tokens_details.image_tokens == view.tokens
    assert usage.qlip["uniform_tokens"] == view.uniform_tokens
    assert usage.qlip["tokens_saved"] == view.uniform_tokens - view.tokens
    assert usage.prompt_tokens == usage.prompt_tokens_details.text_tokens + view.tokens
    assert usage.prompt_tokens_details.text_tokens == len(prompt) - 1  # all but the picture's place
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert set(usage.seconds) == {"queue", "first_pass", "image", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in usage.seconds.values())


def test_the_usage_counts_both_passes_where_the_question_decides(
    engine: ChatEngine, client: OpenAI, answer: ChatCompletion
) -> None:
    options = {"budget": "question", "max_tokens": 100}
    most = engine.vision.prepare(picture(), engine.vision.settings(QLIPOptions(**options))).tokens
    usage = ask(client, extra_body={"qlip": options}, max_tokens=2).usage
    assert usage.qlip["first_pass_tokens"] == 64 < usage.qlip["tokens"] <= most <= 100
    assert usage.qlip["images"] == [{"tokens": usage.qlip["tokens"], "uniform_tokens": 1024}]
    assert usage.seconds["first_pass"] > 0
    assert answer.usage.qlip["first_pass_tokens"] == 0


def test_a_stream_tells_its_usage_if_asked(client: OpenAI, answer: ChatCompletion) -> None:
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    own, whole = (usage.model_dump(exclude={"seconds"}) for usage in (last.usage, answer.usage))
    for usage in (own, whole):
        del usage["prompt_tokens_details"]["cached_tokens"]
    assert own == whole
    assert all(chunk.usage is None for chunk in ask(client, stream=True, max_tokens=2))
