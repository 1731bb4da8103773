"""A worker answers the clients of LLaVA and of OpenAI."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.serve.http import auth, bodies
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.serve import upstream
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import Gate, body, loaded, picture, served
from tests.llava.serve.workers.worker_requests import (
    NAME,
    QUESTION,
    encoded,
    png,
    png_of,
    prompt_for,
    request,
)


@pytest.fixture(scope="module")
def whole(engine: ChatEngine) -> str:
    """The engine's own answer to the question of `request`."""
    return engine.ask(QUESTION, [picture()])


# LLaVA's clients


def test_llavas_client_sees_the_answer_grow_to_what_the_engine_says(engine: ChatEngine, url: str, whole: str) -> None:
    shown = list(upstream.chat(url, request(engine)))
    assert shown[-1] == whole
    assert len(shown) > 3
    assert all(after.startswith(before) for before, after in zip(shown, shown[1:], strict=False))


def test_several_pictures_and_none(engine: ChatEngine, url: str) -> None:
    for images in (0, 2):
        pictures = [picture(i) for i in range(images)]
        fields = {"prompt": prompt_for(engine, images=images), "images": [encoded(png_of(one)) for one in pictures]}
        (*_, last) = upstream.chat(url, request(engine, **fields))
        assert last == engine.ask(QUESTION, pictures)


def test_a_request_without_the_optional_fields_is_answered(engine: ChatEngine, url: str) -> None:
    (*_, last) = upstream.raw_chunks(url, {"model": NAME, "prompt": prompt_for(engine, images=0)})
    assert last["error_code"] == 0


def test_a_model_that_the_worker_does_not_have_is_not_answered_by_another(
    engine: ChatEngine, url: str, whole: str
) -> None:
    reply = httpx.post(f"{url}/worker_generate_stream", json=request(engine, model="other"))
    (frame,) = (json.loads(part) for part in reply.content.split(b"\0") if part)
    assert (reply.status_code, frame["error_code"], frame["error"]["code"]) == (404, 1, "model_not_found")
    assert frame["text"] == f"no model 'other' here; this worker has {NAME}"
    (*_, last) = upstream.chat(url, request(engine, model=""))
    assert last == whole


@pytest.mark.parametrize("stop", [" and", ["nothing", " and"], ""])
def test_stop_strings_end_the_answer(engine: ChatEngine, url: str, whole: str, stop: Any) -> None:
    (*_, last) = upstream.chat(url, request(engine, stop=stop))
    assert last == (whole.split(" and")[0] if stop else whole)


def test_a_seed_makes_a_sampled_answer_repeatable(engine: ChatEngine, url: str) -> None:
    hot = {"temperature": 1.5, "top_p": 0.95, "seed": 7, "max_new_tokens": 9}
    answers = [list(upstream.chat(url, request(engine, **hot)))[-1] for _ in range(2)]
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=7, max_new_tokens=9, stop=("</s>",))
    expected = "".join(engine.reply(prompt_for(engine), [picture()], sampling)).strip()
    assert answers == [expected, expected]


def test_the_last_chunk_tells_what_the_answer_cost_and_qlip_options_change_it(engine: ChatEngine, url: str) -> None:
    costs = {}
    for name, qlip in {"own": None, "clip": {"enabled": False}, "small": {"max_tokens": 70}}.items():
        (*_, last) = upstream.raw_chunks(url, request(engine, qlip=qlip, max_new_tokens=2))
        assert last["finish_reason"] == "length"
        costs[name] = last["usage"]["qlip"]["tokens"]
    assert costs["clip"] == 64
    assert 64 <= costs["small"] <= 70
    assert costs["own"] != costs["clip"]


def test_what_the_context_does_not_hold_shortens_the_answer() -> None:
    tokenizer, model, processor, _ = loaded()
    engine = ChatEngine(tokenizer, model, processor, 128)
    text = engine.question("a " * 40, 0).get_prompt()
    room = engine.context_len - engine.submit(text, [], Sampling(max_new_tokens=1)).usage.text_tokens
    with served(create_app(ModelWorker(engine, [NAME]))) as url:
        (*_, last) = upstream.raw_chunks(url, request(engine, prompt=text, images=[], max_new_tokens=1024))
    engine.close()
    assert last["error_code"] == 0
    assert last["usage"]["completion_tokens"] <= room < 100


@pytest.mark.parametrize("interval", [5, 1000])
def test_the_stream_interval_is_in_tokens(engine: ChatEngine, whole: str, interval: int) -> None:
    with served(create_app(ModelWorker(engine, [NAME], stream_interval=interval))) as url:
        chunks = list(upstream.raw_chunks(url, request(engine)))
    assert 1 <= len(chunks) <= chunks[-1]["usage"]["completion_tokens"] // interval + 1
    assert chunks[-1]["text"].removeprefix(prompt_for(engine)).strip() == whole


def test_marked_image_tokens_reach_the_model_and_the_echo_is_as_the_client_wrote_it() -> None:
    config = {"mm_use_im_start_end": True}
    model = ScriptedModel(["yes"], **config)
    engine = ChatEngine(BytesTokenizer(), model, SquareProcessor(), 4096)
    with served(create_app(ModelWorker(engine, ["m"]))) as url:
        (*_, last) = upstream.raw_chunks(url, {"prompt": "<image>Hi ", "images": [encoded(png((8, 8)))]})
    assert model.prompts == ["<im_start><image><im_end>Hi "]
    assert last["text"] == "<image>Hi yes"


def test_a_client_that_waits_is_told_that_it_is_not_forgotten(engine: ChatEngine) -> None:
    """LLaVA's web server gives up where it hears nothing for ten seconds."""
    asked = request(engine)
    with served(create_app(ModelWorker(engine, [NAME], silence=0.01))) as url, Gate(engine) as gate:
        chunks = upstream.raw_chunks(url, asked)
        waiting = [next(chunks) for _ in range(3)]
        gate.opened.set()
        assert [chunk["text"] for chunk in waiting] == [asked["prompt"]] * 3
        (*_, last) = chunks
    assert last["text"].startswith(asked["prompt"]) and last["text"] != asked["prompt"]


# OpenAI's clients


def test_openais_client_is_answered_beside(url: str, whole: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        answer = client.chat.completions.create(**body()).choices[0].message.content
    assert answer == whole


def test_openais_routes_are_described_where_they_always_are(url: str) -> None:
    assert "/v1/chat/completions" in httpx.get(url + "/openapi.json").json()["paths"]
    assert httpx.get(url + "/docs").status_code == 200


# Keys


def test_keys_open_the_worker_and_so_does_the_controllers_secret() -> None:
    engine = ChatEngine(BytesTokenizer(), ScriptedModel(["yes"] * 9), SquareProcessor(), 4096)
    with served(create_app(ModelWorker(engine, ["m"]), keys=["k1", "k2"], token="s3cret")) as url:
        for route in ("/worker_get_status", "/worker_generate_stream", "/v1/models", "/metrics"):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert httpx.post(url + route, headers=headers, json={"prompt": "Hi"}).status_code == 401
        for key in ("k1", "k2", "s3cret"):
            headers = {"Authorization": f"Bearer {key}"}
            assert (
                httpx.post(url + "/worker_generate_stream", headers=headers, json={"prompt": "Hi"}).status_code == 200
            )
        assert httpx.get(url + "/health").status_code == 200
        for route in ("/v1/models", "/metrics", "/docs"):  # a controller calls none of these
            assert httpx.get(url + route, headers={"Authorization": "Bearer s3cret"}).status_code == 401
    engine.close()


@pytest.mark.parametrize("route", ["/worker_get_status", "/v1/chat/completions"])
def test_a_request_is_checked_once(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[str] = []
    is_own = ContextVar("is_own", default=False)  # other servers may run in this process

    def count(module: Any, name: str) -> None:
        checked = getattr(module, name)

        def note_and_check(*arguments: Any) -> Any:
            if is_own.get():
                checks.append(name)
            return checked(*arguments)

        monkeypatch.setattr(module, name, note_and_check)

    for module, name in ((auth, "is_one_of"), (auth, "is_cross_origin"), (bodies, "BodyBuffer")):
        count(module, name)
    engine = ChatEngine(BytesTokenizer(), ScriptedModel(["yes"]), SquareProcessor(), 4096)
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    app = create_app(ModelWorker(engine, ["m"]), keys=["k"])

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        is_own.set(True)
        await app(scope, receive, send)

    with served(handle) as url, served(app) as other_url:
        reply = httpx.post(url + route, headers={"Authorization": "Bearer k"}, json=asked)
        assert httpx.get(f"{other_url}/health").status_code == 200
    engine.close()
    assert reply.status_code == 200
    assert sorted(checks) == ["BodyBuffer", "is_cross_origin", "is_one_of"]
