"""`test_message` finds a worker by the controller, prints the answer, and says what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from llava.serve import test_message
from llava.serve.engine import ChatEngine
from llava.serve.workers import calls
from llava.serve.workers.controller_app import create_app as controller_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry
from llava.serve.workers.worker_app import ModelWorker, create_app
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import loaded, picture, served

QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def worker(engine: ChatEngine) -> Iterator[str]:
    with served(create_app(ModelWorker(engine, ["llava-demo"]), keys=["k"], token="s3cret")) as url:
        yield url


@pytest.fixture(scope="module")
def controller(worker: str) -> Iterator[str]:
    dispatcher = Dispatcher(Registry(), "s3cret", Timeouts(registration_wait=0))
    status = WorkerStatus(model_names=["llava-demo"], speed=1, queue_length=0)
    dispatcher.registry.register(worker, status, check_heart_beat=False)
    with served(controller_app(dispatcher, "s3cret", keys=["k"])) as url:
        yield url


@pytest.mark.parametrize("reply", [{}, [], None, {"models": None}, {"models": [1]}], ids=str)
def test_another_server_is_no_controller(reply: Any, capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()
    app.add_api_route("/{route}", lambda route: reply, methods=["POST"])
    with served(app) as url:
        assert test_message.main(["--controller-address", url]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"no controller answers at {url} (" in line and "or name another by --controller-address" in line


def test_a_controllers_names_are_escaped_and_its_address_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    reply = {"address": 5, "models": ["x\x1b]0;owned\x07"]}
    app = FastAPI()
    app.add_api_route("/{route}", lambda route: reply, methods=["POST"])
    with served(app) as url:
        assert test_message.main(["--controller-address", url]) == 2
    models, error = capsys.readouterr().err.splitlines()
    assert models == "models: x\\x1b]0;owned\\x07"
    assert f"no controller answers at {url} (its reply to /get_worker_address names no address)" in error


def test_an_error_never_repeats_the_key() -> None:
    error = httpx.LocalProtocolError("Illegal header value b'Bearer S3CRET\\r'")
    assert calls.describe_error(error) == "LocalProtocolError"


@pytest.mark.parametrize(
    ("frames", "out", "said"),
    [
        ([], "", "replied without an answer; its log may say why"),
        (["Hi", "Hi you"], "Hi you\n", "broke off after 6 characters of its answer (peer closed connection"),
    ],
)
def test_an_answer_that_ends_early_is_an_error_on_a_line_of_its_own(
    frames: list[str], out: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app = FastAPI()

    @app.post("/worker_generate_stream")
    async def answer(request: Request) -> Response:
        prompt = (await request.json())["prompt"]
        content = b"".join(json.dumps({"text": prompt + text, "error_code": 0}).encode() + b"\0" for text in frames)
        return Response(content, headers={"Content-Length": str(len(content) + 10 * bool(frames))})

    with served(app) as url:
        assert test_message.main(["--worker-address", url]) == 2
    found = capsys.readouterr()
    assert found.out.lstrip("\n") == out and said in found.err.splitlines()[-1]


@pytest.mark.parametrize("way", ["by the controller", "directly", "through the controller"])
def test_the_answer_is_the_engines(
    way: str, controller: str, worker: str, engine: ChatEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    address = {
        "by the controller": ["--controller-address", controller],
        "directly": ["--worker-address", worker],
        "through the controller": ["--worker-address", controller, "--model-name", "llava-demo"],
    }[way]
    image = str(demo_picture_paths()[0])
    flags = ["--message", QUESTION, "--image-file", image, "--temperature", "0", "--api-key", "k"]
    assert test_message.main([*address, *flags]) == 0
    assert capsys.readouterr().out.strip() == engine.ask(QUESTION, [picture()])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--api-key", "wrong"], "an API key is needed"),
        (["--api-key", "k", "--model-name", "other"], "no worker for the model 'other'; start one by python -m llava"),
        (["--api-key", "k", "--message", "Hi <image>"], "1 <image>, but 0 images were given (error code 1)"),
        (["--api-key", "k", "--message", "Hi \udcff"], "--message contains a lone surrogate, '\\udcff'"),
        (["--api-key", "k", "--message", " "], "the question is empty"),
        (["--api-key", "k", "--image-file", "/no/such.png"], "no such image file: /no/such.png"),
        (["--api-key", "k", "--image-file", "PICTURE", "--image-file", __file__], f"{__file__}: not a readable image"),
        (["--controller-address", "http://127.0.0.1:1"], "no controller answers at http://127.0.0.1:1 ("),
        (
            ["--controller-address", "http://127.0.0.1:1"],
            "start one by python -m llava.serve.controller, or name anoth",
        ),
        (["--worker-address", "http://127.0.0.1:1"], "no worker answers at http://127.0.0.1:1 ("),
        (["--worker-address", "WORKER"], "an API key is needed"),
    ],
)
def test_what_went_wrong_is_said_in_one_line(
    flags: list[str], said: str, controller: str, worker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [{"WORKER": worker, "PICTURE": str(demo_picture_paths()[0])}.get(flag, flag) for flag in flags]
    assert test_message.main(["--controller-address", controller, *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("test_message: error: ") and said in line
