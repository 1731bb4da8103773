"""The web demo's way to a controller: the models it offers, the answers it streams, what it says of failures."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prompting import Turn
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import AnswerPiece, Query
from llava.serve.web.controller_client import ControllerBackend, read_first_pass, read_visual_tokens
from llava.serve.web.handlers import Demo
from llava.serve.web.toasts import errors_as_toasts
from llava.serve.workers import controller_app, protocol, worker_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry
from qlip import QLIPConfig, QLIPImageProcessor
from tests.llava.serve.openai.serving import MODEL, QUESTION, becomes_idle, picture, served

GREEDY = Sampling(temperature=0, max_new_tokens=64)
KEY = "the-key"


def query(text: str = QUESTION, model: str = MODEL, **options: Any) -> Query:
    return Query([Turn("user", text, (picture(),))], GREEDY, QLIPOptions(**options), model)


def answer(backend: ControllerBackend, asked: Query) -> list[AnswerPiece]:
    async def read() -> list[AnswerPiece]:
        return [piece async for piece in backend.ask(asked)]

    return asyncio.run(read())


def text_of(pieces: list[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces).strip()


def toast(backend: ControllerBackend, asked: Query) -> str:
    """What a visitor reads when an answer fails."""
    with pytest.raises(gr.Error) as caught, errors_as_toasts():
        answer(backend, asked)
    return caught.value.message


# With this project's controller and worker


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    """A controller that wants a key, with one worker."""
    app = controller_app.create_app(
        Dispatcher(Registry(), timeouts=Timeouts(registration_wait=0)), on_loopback=True, keys=[KEY]
    )
    with served(app) as url, served(worker_app.create_app(worker_app.ModelWorker(engine, [MODEL]))) as worker:
        httpx.post(url + "/register_worker", json={"worker_name": worker}).raise_for_status()
        yield url


@pytest.mark.parametrize("reload", [False, True])
def test_the_models_are_those_of_the_workers(url: str, reload: bool) -> None:
    backend = ControllerBackend(url + "/", api_key=KEY, reload=reload)
    assert asyncio.run(backend.models()) == [MODEL]


@pytest.mark.parametrize("options", [{"enabled": False}, {"enabled": True, "alpha": 0.8, "max_tokens": 96}])
def test_an_answer_grows_to_what_the_worker_s_engine_says_seen_as_asked(
    url: str, engine: ChatEngine, options: dict[str, Any]
) -> None:
    pieces = answer(ControllerBackend(url, api_key=KEY), query(**options))
    own = engine.submit(engine.question(QUESTION, 1), [picture()], GREEDY, QLIPOptions(**options))
    assert text_of(pieces) == "".join(own).strip()
    assert len([piece for piece in pieces if piece.text]) > 1  # on a busy machine several tokens come at once
    assert pieces[-1].visual_tokens == own.usage.visual_tokens and pieces[-1].first_pass is None


def test_what_the_first_pass_of_a_question_cost_is_in_the_worker_s_last_frame(url: str, engine: ChatEngine) -> None:
    last = answer(ControllerBackend(url, api_key=KEY), query(budget="question", alpha=0.8, max_tokens=96))[-1]
    assert last.first_pass is not None
    assert last.first_pass.tokens == engine.vision.tower.num_patches and last.first_pass.seconds > 0


@pytest.mark.parametrize("usage", [None, {}, {"qlip": 3}, {"qlip": {"first_pass_tokens": float("inf")}, "seconds": {}}])
def test_an_unknown_cost_of_another_worker_is_none(usage: object) -> None:
    assert read_first_pass({"text": "", "usage": usage}) is None
    for count in (float("inf"), -5):
        assert read_visual_tokens({"usage": {"prompt_tokens_details": {"image_tokens": count}}}) is None


def test_a_conversation_is_sent_whole(url: str, engine: ChatEngine) -> None:
    turns = [
        Turn("user", QUESTION, (picture(),)),
        Turn("assistant", "a circle"),
        Turn("user", "How many objects are there?"),
    ]
    conversation = engine.question(QUESTION, 1)
    conversation.messages[-1][1] = "a circle"
    conversation.append_message(conversation.roles[0], "How many objects are there?")
    conversation.append_message(conversation.roles[1], None)
    own = "".join(engine.submit(conversation, [picture()], GREEDY)).strip()
    assert text_of(answer(ControllerBackend(url, api_key=KEY), replace(query(), turns=turns))) == own


def test_closing_an_answer_stops_the_worker(url: str, engine: ChatEngine) -> None:
    async def look_away() -> None:
        asked = replace(query(), sampling=Sampling(temperature=0, max_new_tokens=1000))
        pieces = ControllerBackend(url, api_key=KEY).ask(asked)
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(look_away())
    assert becomes_idle(engine)


def test_what_goes_wrong_is_told_with_what_to_do(url: str) -> None:
    backend = ControllerBackend(url, api_key=KEY)
    assert toast(backend, query(model="other")).startswith(
        "No worker serves 'other'; served: llava-demo. Choose another model"
    )
    assert "Shorten the question, lower the token budget, or clear the chat." in toast(backend, query("long " * 2100))
    assert "this server allows at most 4096" in toast(backend, query(max_tokens=5000))
    wrong = toast(ControllerBackend(url, api_key="wrong"), query())
    assert wrong.startswith("An API key is needed") and "wrong" not in wrong


def test_models_are_listed_again_once_one_is_gone() -> None:
    registry = Registry()
    app = controller_app.create_app(Dispatcher(registry, timeouts=Timeouts(registration_wait=0)), on_loopback=True)
    with served(app) as url:
        backend = ControllerBackend(url)
        demo = Demo(backend)
        assert asyncio.run(demo.models(None)) == gr.update(choices=[], value=None)
        assert toast(backend, query(model="")).startswith("No worker serves a model at present")
        registry.register(
            "http://127.0.0.1:1", protocol.WorkerStatus(model_names=["new"], speed=1, queue_length=0), True
        )
        assert asyncio.run(demo.models(None)) == gr.update(choices=["new"], value="new")
        assert asyncio.run(demo.models("new")) == gr.skip()
        assert asyncio.run(demo.models("gone")) == gr.update(choices=["gone", "new"], value="gone")
        registry.register(
            "http://127.0.0.1:1", protocol.WorkerStatus(model_names=["newer"], speed=1, queue_length=0), True
        )
        assert asyncio.run(backend.models()) == ["new"]
        assert "Choose another model, or reload" in toast(backend, query(model="new"))
        assert asyncio.run(backend.models()) == ["newer"]


def test_a_controller_that_is_not_there_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with served(FastAPI()) as gone:
        pass
    for call in (lambda backend: answer(backend, query()), lambda backend: asyncio.run(backend.models())):
        with pytest.raises(RequestError, match="^the model's server cannot be reached$"):
            call(ControllerBackend(gone))
    assert "ConnectError" in caplog.text, "the operator's log names the class"


def test_a_page_that_was_opened_before_its_controller_asks_the_first_model() -> None:
    with upstream(lambda request: framed({"text": request["prompt"] + " a ring", "error_code": 0})) as (url, asked):
        assert text_of(answer(ControllerBackend(url), query(model=""))) == "a ring"
    assert asked[0]["model"] == "a"


def test_an_answer_that_breaks_off_is_told_as_that() -> None:
    async def frames() -> AsyncIterator[bytes]:
        yield json.dumps({"text": "", "error_code": 0}).encode() + b"\0"
        raise ConnectionError

    with upstream(lambda request: StreamingResponse(frames())) as (url, _):
        told = toast(ControllerBackend(url), query())
    assert told == "The connection to the model's server broke. Ask again, or press Regenerate."


# With whatever else speaks the protocol


@contextmanager
def upstream(reply: Callable[[dict[str, Any]], Response]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A controller of another make that knows no QLIP; what it was asked for is kept."""
    app, asked = FastAPI(), list[dict[str, Any]]()

    @app.post("/list_models")
    def list_models() -> dict[str, list[str]]:
        return {"models": ["b", "a"]}

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        asked.append(await request.json())
        return reply(asked[-1])

    with served(app) as url:
        yield url, asked


def framed(*frames: dict[str, Any]) -> Response:
    return Response(b"".join(json.dumps(frame).encode() + b"\0" for frame in frames))


def test_llavas_protocol_is_kept_to_the_letter() -> None:
    def reply(request: dict[str, Any]) -> Response:
        texts = (request["prompt"] + text for text in ("", " a", " a", " a ring"))
        return framed(*({"text": text, "error_code": 0} for text in texts))

    with upstream(reply) as (url, asked):
        backend = ControllerBackend(url)
        assert asyncio.run(backend.models()) == ["a", "b"]
        pieces = answer(backend, query(model="a", enabled=False))
    assert text_of(pieces) == "a ring"
    assert {piece.visual_tokens for piece in pieces} == {None}
    (request,) = asked
    (image,) = request.pop("images")
    assert Image.open(BytesIO(base64.b64decode(image))).tobytes() == picture().tobytes()
    assert request.pop("prompt").endswith(f"questions. USER: <image>\n{QUESTION} ASSISTANT:")
    assert request == {
        "model": "a",
        "temperature": 0,
        "top_p": 1.0,
        "max_new_tokens": 64,
        "stop": "</s>",
        "qlip": {"enabled": False},
    }


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (framed({"text": "**NETWORK\nERROR**.", "error_code": 1}), "**NETWORK ERROR**"),
        (framed({"text": "x" * 400, "error_code": 2}), "x" * 300 + "…"),
        (framed({"text": 7}), "the worker's answer is not LLaVA's protocol"),
        (Response(b"<html>"), "the worker's answer is not LLaVA's protocol"),
        (JSONResponse({"detail": "no"}, 500), "the controller answered 500"),
        (Response(b"x" * (2**20 + 1)), "the worker's answer is not LLaVA's protocol"),
    ],
)
def test_a_worker_s_trouble_is_told_in_one_line(reply: Response, told: str) -> None:
    with upstream(lambda request: reply) as (url, _), pytest.raises(RequestError) as caught:
        answer(ControllerBackend(url), query())
    assert str(caught.value) == told


# What is drawn


def test_the_views_are_those_of_clip_l_without_any_model() -> None:
    backend, image = ControllerBackend("http://unused"), picture()
    assert backend.defaults is not None
    view = backend.prepare(image, QLIPOptions(enabled=True, alpha=0.5, max_tokens=200))
    processor = QLIPImageProcessor(14, 336, qlip=QLIPConfig(alpha=0.5, max_tokens=200))
    pixels = processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(view.leaves.boxes, processor.partition(pixels).boxes)
    assert (view.tokens, view.uniform_tokens) == (len(view.leaves), 48 * 48)  # twice CLIP's cells for 448 px
    by_clip = backend.prepare(image, QLIPOptions(enabled=False))
    assert (by_clip.tokens, by_clip.leaves, backend.native_tokens) == (576, None, 576)
    native = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    assert torch.equal(by_clip.image, torch.as_tensor(native(image, return_tensors="pt")["pixel_values"][0]))
