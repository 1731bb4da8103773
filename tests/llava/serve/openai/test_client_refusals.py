"""OpenAI's own client gets errors that name the field of the request."""

from __future__ import annotations

import http.server
import threading
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from llava.serve.engine import ChatEngine
from llava.serve.http.limits import RequestLimits
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.conftest import KEY
from tests.llava.serve.openai.replies import ask, text
from tests.llava.serve.openai.serving import (
    MODEL,
    QUESTION,
    api,
    body,
    picture,
    user,
)

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
        ({"max_tokens": 3000}, None, "44 text tokens, 85 positions of images and an answer of up to 3000 .* of 2048"),
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
def test_what_asks_for_nothing_is_taken(client: OpenAI, answer: ChatCompletion, fields: dict[str, Any]) -> None:
    assert text(ask(client, **fields)) == text(answer)


def test_a_picture_comes_from_an_allowed_host_only() -> None:
    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = demo_picture_paths()[0].read_bytes()
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
