"""The real `openai` client, against the API over loopback: its answers are the engine's, however they are asked for."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits, QLIPOptions, Sampling
from llava.serve.http.limits import RequestLimits
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
    picture_paths,
    user,
)

KEY = "sesame"
QUESTIONS = [QUESTION, "How many shapes are there?", "Is there a circle?"]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ChatEngine, str]]:
    with api(engine_limits=EngineLimits(max_waiting=32), api_keys=(KEY,)) as (engine, http_client):
        yield engine, f"{http_client.base_url}/v1"


@pytest.fixture(scope="module")
def engine(served: tuple[ChatEngine, str]) -> ChatEngine:
    return served[0]


@pytest.fixture(scope="module")
def client(served: tuple[ChatEngine, str]) -> Iterator[OpenAI]:
    with OpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def many(served: tuple[ChatEngine, str]) -> Callable[[list[dict[str, Any]]], list[ChatCompletion]]:
    """Asks all requests at once."""

    def ask(requests: list[dict[str, Any]]) -> list[ChatCompletion]:
        async def gather() -> list[ChatCompletion]:
            async with AsyncOpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
                return await asyncio.gather(*(client.chat.completions.create(**request) for request in requests))

        return asyncio.run(gather())

    return ask


def ask(client: OpenAI, *messages: dict[str, Any], **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(**body(*messages, **fields))


def text(completion: ChatCompletion) -> str:
    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    return choice.message.content


def joined(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# The answer


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_greedy_answer_is_the_engines_own(engine: ChatEngine, client: OpenAI, question: str) -> None:
    completion = ask(client, user(question))
    assert text(completion) == engine.ask(question, [picture()])
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == MODEL


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_streamed_answer_is_the_whole_one_in_pieces(client: OpenAI, question: str) -> None:
    chunks = list(ask(client, user(question), stream=True))
    whole = ask(client, user(question))
    assert joined(chunks) == text(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_asynchronous_client_gets_the_same(served: tuple[ChatEngine, str], client: OpenAI) -> None:
    async def both() -> tuple[ChatCompletion, list[ChatCompletionChunk]]:
        async with AsyncOpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
            whole = await client.chat.completions.create(**body())
            return whole, [chunk async for chunk in await client.chat.completions.create(**body(stream=True))]

    whole, chunks = asyncio.run(both())
    assert text(whole) == joined(chunks) == text(ask(client))


def test_the_clients_stream_helper_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(**body(stream_options={"include_usage": True})) as stream:
        completion = stream.get_final_completion()
    whole = ask(client)
    assert text(completion) == text(whole)
    assert completion.usage.total_tokens == whole.usage.total_tokens


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
    developer = ask(client, {"role": "developer", "content": "Answer in short."}, user())
    assert developer.usage.prompt_tokens < completion.usage.prompt_tokens


def test_an_answer_can_be_sent_back_as_the_client_holds_it(client: OpenAI) -> None:
    first = ask(client).choices[0].message
    again = ask(client, user(), first.model_dump(), {"role": "user", "content": "How many shapes are there?"})
    plain = ask(
        client,
        user(),
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": "How many shapes are there?"},
    )
    assert text(again) == text(plain)


def test_several_pictures_are_shown_in_their_order(engine: ChatEngine, client: OpenAI) -> None:
    urls = [data_url(path.read_bytes()) for path in picture_paths()[:2]]
    completion = ask(client, user(QUESTION, *urls))
    assert text(completion) == engine.ask(QUESTION, [picture(0), picture(1)])
    assert [image["tokens"] for image in completion.usage.qlip["images"]] == [
        engine.vision.prepare(picture(i), engine.vision.settings()).tokens for i in range(2)
    ]


def test_text_alone_needs_no_picture(client: OpenAI) -> None:
    completion = ask(client, {"role": "user", "content": "Hello"})
    assert completion.usage.prompt_tokens_details.image_tokens == 0
    assert completion.usage.qlip["images"] == []


@pytest.mark.parametrize("detail", [None, "auto", "low", "high", "original", "finest", ""])
def test_the_forms_of_a_picture_are_the_same(client: OpenAI, detail: str | None) -> None:
    url = data_url() if detail is None else {"url": data_url(), "detail": detail}
    message = {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": url}]}
    assert text(ask(client, message)) == text(ask(client))


# How it is chosen, and where it ends


def test_answers_asked_for_together_are_as_they_are_alone(
    engine: ChatEngine, client: OpenAI, many: Callable[..., list[ChatCompletion]]
) -> None:
    urls = [data_url(path.read_bytes()) for path in picture_paths()]
    requests = [body(user(question, url)) for question in QUESTIONS for url in urls]
    requests += [body(temperature=1.0, seed=7, max_tokens=5), body(extra_body={"qlip": {"enabled": False}})]
    alone = [client.chat.completions.create(**request) for request in requests]
    with Gate(engine, opens_at=len(requests)) as gate:
        together = many(requests)
    assert [text(completion) for completion in together] == [text(completion) for completion in alone]
    assert sum(gate.batches) == len(requests)
    assert len(gate.batches) <= 3  # one that came first, and as many together as a batch may hold


def test_a_seed_repeats_a_sampled_answer(client: OpenAI) -> None:
    hello = {"role": "user", "content": "Hello"}
    answers = [text(ask(client, hello, temperature=2, seed=seed, max_tokens=20)) for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


@pytest.mark.parametrize("top_p", [0, 1e-6])
def test_a_top_p_of_nothing_is_greedy(client: OpenAI, top_p: float) -> None:
    assert text(ask(client, temperature=2, top_p=top_p)) == text(ask(client))


@pytest.mark.parametrize("stop", [" and", [" and"], ["nowhere", " and", "square"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: OpenAI, stop: Any, stream: bool) -> None:
    whole = text(ask(client))
    assert " and" in whole
    found = ask(client, stop=stop, stream=stream)
    pieces = joined(list(found)) if stream else text(found)
    assert pieces == whole.split(" and")[0]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_as_long_as_asked_for(client: OpenAI, name: str) -> None:
    completion = ask(client, **{name: 3})
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 3
    assert text(ask(client)).startswith(text(completion))


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
        with pytest.raises(openai.BadRequestError, match=f"up to 6 tokens exceed .* of {prompt + 5}") as caught:
            ask(client, max_tokens=6)
        assert caught.value.code == "context_length_exceeded"


# What it cost


@pytest.mark.parametrize(
    "options",
    [{}, {"enabled": False}, {"enabled": True, "alpha": 0.3}, {"max_tokens": 70}, {"image_size": 224, "alpha": 0.0}],
)
def test_the_usage_counts_what_the_model_sees(engine: ChatEngine, client: OpenAI, options: dict[str, Any]) -> None:
    view = engine.vision.prepare(picture(), engine.vision.settings(QLIPOptions(**options)))
    usage = ask(client, extra_body={"qlip": options}).usage
    words = engine.tokenizer(engine.question(QUESTION, 0).get_prompt()).input_ids
    assert usage.prompt_tokens_details.image_tokens == view.tokens
    assert usage.qlip["uniform_tokens"] == view.uniform_tokens
    assert usage.qlip["tokens_saved"] == view.uniform_tokens - view.tokens
    assert usage.prompt_tokens == usage.prompt_tokens_details.text_tokens + view.tokens
    assert 0 <= usage.prompt_tokens_details.text_tokens - len(words) <= 2  # the line break after the picture
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert set(usage.seconds) == {"queue", "image", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in usage.seconds.values())


def test_a_stream_tells_its_usage_if_asked(client: OpenAI) -> None:
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    whole = ask(client).usage
    assert last.usage.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})
    assert all(chunk.usage is None for chunk in ask(client, stream=True))


# Models, keys and errors


def test_the_models_are_listed_and_described(engine: ChatEngine, client: OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.max_model_len) == (MODEL, engine.context_len)
    assert client.models.retrieve(MODEL) == model


@pytest.mark.parametrize("name", ["gpt-5", "liuhaotian/llava-v1.5-7b"])
def test_an_unknown_model_is_not_found(client: OpenAI, name: str) -> None:
    for call in (
        lambda: client.models.retrieve(name),
        lambda: client.chat.completions.create(**body() | {"model": name}),
    ):
        with pytest.raises(openai.NotFoundError, match=f"no model '{name}' here; this server has {MODEL}") as caught:
            call()
        assert caught.value.code == "model_not_found"


def test_without_the_key_nothing_is_told(client: OpenAI) -> None:
    stranger = client.with_options(api_key="wrong")
    for call in (stranger.models.list, lambda: stranger.chat.completions.create(**body())):
        with pytest.raises(openai.AuthenticationError, match="an API key is needed") as caught:
            call()
        assert KEY not in str(caught.value.body)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": 2.1}, "temperature", "less than or equal to 2, got 2.1"),
        ({"temperature": "hot"}, "temperature", "valid number, got 'hot'"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1, got 1.5"),
        ({"n": 2}, "n", "only 1 is supported here, got 2"),
        ({"stop": list("abcde")}, "stop", "at most 4 items"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"presence_penalty": 0.5}, "presence_penalty", "only 0 is supported here, got 0.5"),
        ({"frequency_penalty": -1}, "frequency_penalty", "only 0 is supported here, got -1"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported here"),
        ({"extra_body": {"typical_p": 5}}, "typical_p", "this server knows no such field, got 5"),
        ({"extra_body": {"top_k": -2}}, "top_k", "greater than or equal to -1, got -2"),
        ({"extra_body": {"min_p": 1.5}}, "min_p", "less than or equal to 1, got 1.5"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty", "greater than 0, got 0"),
        ({"extra_body": {"qlip": {"alpah": 1}}}, "qlip.alpah", "this server knows no such field, got 1"),
        ({"extra_body": {"qlip": {"alpha": -1}}}, "qlip.alpha", "greater than or equal to 0, got -1"),
        ({"extra_body": {"qlip": {"image_size": 9000}}}, "qlip", "image_size is 9000; this server allows at most 4096"),
        ({"extra_body": {"qlip": {"enabled": False, "alpha": 1}}}, "qlip", "not enabled, so it takes no alpha"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "max_tokens is 5, but .* is 6"),
        ({"max_tokens": 3000}, None, "43 text tokens, 91 visual tokens and an answer of up to 3000 .* of 2048"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true only"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "3", "tool_call_id": "1"}]}, "messages[0].role", "'user'"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages", "must be the user's"),
        ({"messages": [{"role": "user", "content": "what <image> is it?"}]}, "messages", "may not hold '<image>'"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "the user's message is empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0]",
            "'text', 'image_url'",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: OpenAI, fields: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.chat.completions.create(**body() | fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "somebody", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "logit_bias": {}},
        {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "stop": []},
        {"extra_body": {"top_k": None, "guided_json": {}, "plugins": [], "suffix": ""}},
        {"user": "", "service_tier": "", "tool_choice": "", "top_logprobs": 0, "response_format": {}},
        {"extra_body": {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0}},
    ],
)
def test_what_asks_for_nothing_is_taken(client: OpenAI, fields: dict[str, Any]) -> None:
    assert text(ask(client, **fields)) == text(ask(client))


def test_a_picture_comes_from_an_allowed_host_only() -> None:
    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = picture_paths()[0].read_bytes()
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/picture")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    port = server.server_address[1]
    limits = RequestLimits(media_hosts=frozenset({"127.0.0.1"}))
    try:
        with api(limits=limits, allow_loopback=True) as (engine, http_client):
            client = OpenAI(base_url=f"{http_client.base_url}/v1", api_key="none", max_retries=0)
            answer = ask(client, user(QUESTION, f"http://127.0.0.1:{port}/picture"))
            assert text(answer) == engine.ask(QUESTION, [picture()])
            for url, words in (
                (f"http://127.0.0.1:{port}/moved", "the server answered 302"),
                (f"http://localhost:{port}/picture", "localhost"),
            ):
                with pytest.raises(openai.BadRequestError, match=words) as caught:
                    ask(client, user(QUESTION, url))
                assert caught.value.code == "invalid_image"
    finally:
        server.shutdown()
        server.server_close()
