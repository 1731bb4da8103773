"""The page and `test_message` write prompts in the template that a worker states, else in LLaVA v1.5's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from llava.serve import test_message
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prompting import Turn
from llava.serve.web.backend import Query
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.workers import controller_app, worker_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import served

MISTRAL, VICUNA = "[INST] What is it? [/INST]", "questions. USER: What is it? ASSISTANT:"


@pytest.fixture
def controller() -> Iterator[str]:
    dispatcher = Dispatcher(Registry(), timeouts=Timeouts(registration_wait=0))
    with served(controller_app.create_app(dispatcher, on_loopback=True)) as url:
        yield url


def register(controller: str, worker: str) -> None:
    httpx.post(controller + "/register_worker", json={"worker_name": worker}).raise_for_status()


def ask_by_page(controller: str, conv_mode: str | None = None) -> None:
    async def read() -> None:
        turns = [Turn("user", "What is it?")]
        query = Query(turns, Sampling(temperature=0, max_new_tokens=4), QLIPOptions(), "m")
        assert [piece async for piece in ControllerBackend(controller, conv_mode).ask(query)]

    asyncio.run(read())


def ask_by_message(*flags: str) -> None:
    assert test_message.main(["--message", "What is it?", "--temperature", "0", *flags]) == 0


def test_a_worker_states_its_models_template_and_a_flag_wins(controller: str) -> None:
    model = ScriptedModel(["a ring"] * 5, conv_mode="mistral_instruct")
    engine = ChatEngine(BytesTokenizer(), model, SquareProcessor(), 4096)
    with served(worker_app.create_app(worker_app.ModelWorker(engine, ["m"]))) as worker:
        register(controller, worker)
        ask_by_page(controller)
        ask_by_message("--controller-address", controller)
        ask_by_message("--worker-address", worker)
        assert model.prompts == [MISTRAL] * 3
        ask_by_page(controller, "vicuna_v1")
        ask_by_message("--controller-address", controller, "--conv-mode", "vicuna_v1")
        assert [prompt.endswith(VICUNA) for prompt in model.prompts[3:]] == [True] * 2
    engine.close()


@pytest.mark.parametrize("stated", [None, {}, {"m": "of-tomorrow"}], ids=["upstream", "none", "unknown"])
def test_a_worker_that_states_no_known_template_is_asked_as_llava_v1_5(
    controller: str, stated: dict[str, str] | None
) -> None:
    app, prompts = FastAPI(), list[str]()

    @app.post("/worker_get_status")
    def status() -> dict[str, Any]:
        more = {} if stated is None else {"conv_modes": stated}
        return {"model_names": ["m"], "speed": 1, "queue_length": 0, **more}

    @app.post("/worker_generate_stream")
    async def generate(request: Request) -> Response:
        prompts.append((await request.json())["prompt"])
        return Response(json.dumps({"text": prompts[-1] + " a ring", "error_code": 0}).encode() + b"\0")

    with served(app) as worker:
        register(controller, worker)
        ask_by_page(controller)
        ask_by_message("--controller-address", controller)
    assert [prompt.endswith(VICUNA) for prompt in prompts] == [True] * 2
