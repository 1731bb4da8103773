"""A worker answers LLaVA's own clients, tells them what went wrong, and stops when they go."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image

from llava.images import ImageLimits
from llava.serve import model_worker
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits, Sampling
from llava.serve.http.limits import RequestLimits
from llava.serve.model_worker import parse_args
from llava.serve.workers import controller_app
from llava.serve.workers.dispatcher import Dispatcher
from llava.serve.workers.registry import Registry
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.serve import upstream
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import DEADLINE, Gate, body, loaded, picture, picture_paths, reaches, served
from tests.llava.serve.programs import eventually
from tests.llava.serve.upstream import UpstreamError

NAME = "llava-demo"
QUESTION = "What is in the picture?"


def encoded(data: bytes | None = None) -> str:
    return base64.b64encode(picture_paths()[0].read_bytes() if data is None else data).decode()


def png(size: tuple[int, int], mode: str = "RGB", format: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, format)
    return buffer.getvalue()


def prompt_for(engine: ChatEngine, question: str = QUESTION, images: int = 1) -> str:
    return engine.question(question, images).get_prompt()


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded(), limits=EngineLimits(max_batch=4, max_waiting=2))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    limits = RequestLimits(max_body=2**20, max_images=3, max_prompt=4000, image=ImageLimits(max_pixels=10**6))
    with served(create_app(ModelWorker(engine, [NAME], limits))) as url:
        yield url


def request(engine: ChatEngine, **fields: Any) -> dict[str, Any]:
    asked = {"model": NAME, "prompt": prompt_for(engine), "temperature": 0, "images": [encoded()], "stop": "</s>"}
    return {**asked, **fields}


def post(url: str, content: Any, **options: Any) -> httpx.Response:
    return httpx.post(url + "/worker_generate_stream", timeout=DEADLINE, **{"json": content, **options})


def told(reply: httpx.Response) -> dict[str, Any]:
    """The one frame of a refusal."""
    assert reply.content.endswith(b"\0") and reply.content.count(b"\0") == 1
    return json.loads(reply.content[:-1])


# LLaVA's clients


def test_llavas_client_sees_the_answer_grow_to_what_the_engine_says(engine: ChatEngine, url: str) -> None:
    shown = list(upstream.chat(url, request(engine)))
    assert shown[-1] == engine.ask(QUESTION, [picture()])
    assert len(shown) > 3
    assert all(after.startswith(before) for before, after in zip(shown, shown[1:], strict=False))


def test_several_pictures_and_none(engine: ChatEngine, url: str) -> None:
    for images in (0, 2):
        pictures = [picture(i) for i in range(images)]
        fields = {"prompt": prompt_for(engine, images=images), "images": [encoded(png_of(one)) for one in pictures]}
        (*_, last) = upstream.chat(url, request(engine, **fields))
        assert last == engine.ask(QUESTION, pictures)


def png_of(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_request_without_the_optional_fields_is_answered(engine: ChatEngine, url: str) -> None:
    (*_, last) = upstream.raw_chunks(url, {"model": NAME, "prompt": prompt_for(engine, images=0)})
    assert last["error_code"] == 0


@pytest.mark.parametrize("stop", [" and", ["nothing", " and"], None, ""])
def test_stop_strings_end_the_answer(engine: ChatEngine, url: str, stop: Any) -> None:
    whole = engine.ask(QUESTION, [picture()])
    (*_, last) = upstream.chat(url, request(engine, stop=stop))
    assert last == (whole.split(" and")[0] if stop else whole)


def test_a_seed_makes_a_sampled_answer_repeatable(engine: ChatEngine, url: str) -> None:
    hot = {"temperature": 1.5, "top_p": 0.95, "seed": 7}
    answers = [list(upstream.chat(url, request(engine, **hot)))[-1] for _ in range(2)]
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=7, max_new_tokens=256, stop=("</s>",))
    expected = "".join(engine.generate(prompt_for(engine), [picture()], sampling)).strip()
    assert answers == [expected, expected]


def test_the_last_chunk_tells_what_the_answer_cost_and_qlip_options_change_it(engine: ChatEngine, url: str) -> None:
    costs = {}
    for name, qlip in {"own": None, "clip": {"enabled": False}, "small": {"max_tokens": 70}}.items():
        (*_, last) = upstream.raw_chunks(url, request(engine, qlip=qlip))
        assert last["finish_reason"] == "stop"
        costs[name] = last["usage"]["qlip"]["tokens"]
    assert costs["clip"] == 64
    assert 64 <= costs["small"] <= 70
    assert costs["own"] != costs["clip"]


def test_what_the_context_does_not_hold_shortens_the_answer(engine: ChatEngine, url: str) -> None:
    text = engine.question("a " * 1500, 0).get_prompt()
    room = engine.context_len - engine.submit(text, [], Sampling(max_new_tokens=1)).usage.text_tokens
    (*_, last) = upstream.raw_chunks(url, request(engine, prompt=text, images=[], max_new_tokens=1024))
    assert last["error_code"] == 0
    assert last["usage"]["completion_tokens"] <= room < 1024


@pytest.mark.parametrize("interval", [1, 5, 1000])
def test_the_stream_interval_is_in_tokens(engine: ChatEngine, interval: int) -> None:
    with served(create_app(ModelWorker(engine, [NAME], stream_interval=interval))) as url:
        chunks = list(upstream.raw_chunks(url, request(engine)))
    assert 1 <= len(chunks) <= chunks[-1]["usage"]["completion_tokens"] // interval + 1
    assert chunks[-1]["text"].removeprefix(prompt_for(engine)).strip() == engine.ask(QUESTION, [picture()])


@contextmanager
def scripted(script: list[Any], **options: Any) -> Iterator[str]:
    engine = ChatEngine(BytesTokenizer(), ScriptedModel(script, **options.pop("config", {})), SquareProcessor(), 4096)
    with served(create_app(ModelWorker(engine, ["m"], **options))) as url:
        yield url
    engine.close()


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


def test_openais_client_is_answered_beside(engine: ChatEngine, url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        answer = client.chat.completions.create(**body()).choices[0].message.content
    assert answer == engine.ask(QUESTION, [picture()])


def test_openais_routes_are_described_where_they_always_are(url: str) -> None:
    assert "/v1/chat/completions" in httpx.get(url + "/openapi.json").json()["paths"]
    assert httpx.get(url + "/docs").status_code == 200


# What goes wrong


HOSTILE: list[tuple[dict[str, Any], int, str]] = [
    ({"images": []}, 400, "1 <image>, but 0 images"),
    ({"images": [encoded()] * 2}, 400, "1 <image>, but 2 images"),
    ({"images": [encoded()] * 4}, 400, "4 images; at most 3"),
    ({"images": ["!!!"]}, 400, "base64"),
    ({"images": ["/etc/passwd"]}, 400, "image"),
    ({"images": ["http://127.0.0.1/a.png"]}, 400, "send the file's content as base64"),
    ({"images": [encoded(b"")]}, 400, "image"),
    ({"images": [encoded(b"hello")]}, 400, "not a readable image"),
    ({"images": [encoded(png((64, 64))[:60])]}, 400, "not a readable image"),
    ({"images": [encoded(png((1, 1)))]}, 400, "1x1"),
    ({"images": [encoded(png((20000, 10), "1"))]}, 400, "20000x10"),
    ({"images": [encoded(png((4000, 4000), "1"))]}, 400, "at most 1,000,000"),
    ({"images": [encoded(png((64, 64)) + b" " * 2**20)]}, 413, "body is larger"),
    ({"images": [encoded(png((64, 64), format="PDF"))]}, 400, "not a readable image"),
    ({"images": [b"\0".decode()]}, 400, "base64"),
    ({"prompt": "<image>" + "¤" * 1900}, 400, "exceed the model's context of 2048"),
    ({"prompt": "<image>" + "a" * 4000}, 400, "4,007 characters; at most 4,000"),
    ({"prompt": 5}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"temperature": -1}, 400, "temperature must be"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 2}, 400, "top_p must be"),
    ({"max_new_tokens": 0}, 400, "max_new_tokens must be"),
    ({"max_new_tokens": 10**40, "seed": 10**40}, 400, "seed must be"),
    ({"stop": 5}, 400, "stop"),
    ({"stop": [None]}, 400, "stop"),
    ({"stop": ["x"] * 17}, 400, "17 texts, the longest of 1 characters; at most 16 of at most 1,000"),
    ({"qlip": {"alpha": -1}}, 400, "alpha"),
    ({"qlip": {"max_tokens": 10**9}}, 400, "allows at most 4096"),
    ({"qlip": {"image_size": 10**9}}, 400, "allows at most 4096"),
    ({"qlip": {"enabled": False, "alpha": 1}}, 400, "not enabled"),
    ({"qlip": {"mlp": "/etc/passwd"}}, 400, "qlip.mlp"),
]


@pytest.mark.parametrize(("fields", "status", "said"), HOSTILE)
def test_bad_requests_are_refused_by_status_and_in_words(
    engine: ChatEngine, url: str, fields: dict[str, Any], status: int, said: str
) -> None:
    reply = post(url, request(engine, **fields))
    assert reply.status_code == status
    failure = json.loads(reply.content.rstrip(b"\0"))
    assert said in failure["text"] and failure["error_code"] == 1
    assert failure["error"]["message"] == failure["text"]
    assert engine.waiting == 0


@pytest.mark.parametrize(("fields", "said"), [(fields, said) for fields, _, said in HOSTILE[:3]])
def test_llavas_client_reads_the_reason_too(engine: ChatEngine, url: str, fields: Any, said: str) -> None:
    with pytest.raises(UpstreamError, match=rf"{said}.* \(error_code: 1\)"):
        list(upstream.chat(url, request(engine, **fields)))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 50_000, b'{"prompt": NaN}']
)
def test_what_is_no_request_is_refused(url: str, content: bytes) -> None:
    reply = httpx.post(url + "/worker_generate_stream", content=content)
    assert reply.status_code == 400
    assert told(reply)["error_code"] == 1


@pytest.mark.parametrize(("method", "route"), [("GET", "/worker_generate_stream"), ("POST", "/nowhere")])
def test_what_is_not_there_is_4xx(url: str, method: str, route: str) -> None:
    reply = httpx.request(method, url + route)
    assert reply.status_code in (404, 405)
    assert reply.json()["error"]["message"]


def test_more_than_may_wait_is_429_and_when_to_come_back(engine: ChatEngine, url: str) -> None:
    with Gate(engine) as gate:
        first = engine.submit(prompt_for(engine, images=0), [], Sampling())
        assert gate.reached.wait(DEADLINE)
        others = [engine.submit(prompt_for(engine, images=0), [], Sampling()) for _ in range(2)]
        status = httpx.post(url + "/worker_get_status").json()
        assert status == {"model_names": [NAME], "speed": 1, "queue_length": 3}
        reply = post(url, request(engine))
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert "try again" in told(reply)["text"]
    for answer in (first, *others):
        answer.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [("OutOfMemoryError", "out of memory; shorten the prompt"), ("RuntimeError", "the model failed")],
)
def test_a_failure_amid_the_answer_is_told_in_a_chunk(error: str, said: str) -> None:
    failure = {"OutOfMemoryError": torch.OutOfMemoryError, "RuntimeError": RuntimeError}[error]
    refused = pytest.raises(UpstreamError, match=rf"{said}.* \(error_code: 1\)")
    with scripted([failure("at /secret/path")] * 2) as url:
        assert post(url, {"prompt": "Hi"}).status_code == 200  # it was taken on, and only the chunk tells
        with refused as caught:
            list(upstream.chat(url, {"prompt": "Hi"}))
    assert "secret" not in str(caught.value)


def test_a_worker_that_ends_says_so(engine: ChatEngine) -> None:
    closed = ChatEngine(*loaded())
    closed.close()
    with served(create_app(ModelWorker(closed, [NAME]))) as url:
        reply = post(url, request(engine))
    assert reply.status_code == 503
    assert "shutting down" in told(reply)["text"]


# Clients that go


def test_the_model_stops_when_the_client_goes_before_the_answer(engine: ChatEngine, url: str) -> None:
    with Gate(engine) as gate:
        first = engine.submit(prompt_for(engine, images=0), [], Sampling())
        assert gate.reached.wait(DEADLINE)
        with httpx.stream("POST", url + "/worker_generate_stream", json=request(engine), timeout=DEADLINE) as reply:
            assert reply.status_code == 200
            assert engine.waiting == 1
        assert reaches(engine, lambda: engine.waiting == 0)
    first.close()


@pytest.mark.parametrize("program", ["worker", "controller"])
def test_a_client_that_goes_amid_its_request_is_no_error(
    engine: ChatEngine, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    front = controller_app.create_app(Dispatcher(Registry()))
    app = {"worker": create_app(ModelWorker(engine, [NAME])), "controller": front}[program]
    scope = {"type": "http", "method": "POST", "path": "/worker_generate_stream", "query_string": b"", "headers": []}
    messages = [{"type": "http.request", "body": b'{"prompt": "', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert (messages, sent, caplog.records) == ([], [], [])


def test_answers_refusals_and_vanished_clients_are_counted(engine: ChatEngine) -> None:
    def count(url: str, line: str) -> float:
        lines = httpx.get(url + "/metrics").text.splitlines()
        return next((float(found.rpartition(" ")[2]) for found in lines if found.startswith(line)), 0.0)

    with served(create_app(ModelWorker(engine, [NAME]))) as url:
        list(upstream.chat(url, request(engine)))
        post(url, request(engine, images=[]))
        with (
            Gate(engine),
            httpx.stream("POST", url + "/worker_generate_stream", json=request(engine), timeout=DEADLINE),
        ):
            pass
        assert reaches(engine, lambda: engine.waiting + engine.running == 0)
        eventually(lambda: count(url, 'llava_answers_total{finish_reason="cancelled"}') == 1)
        assert count(url, 'llava_answers_total{finish_reason="stop"}') == 1
        assert count(url, 'llava_errors_total{kind="invalid_request"}') == 1


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
    engine.close()


# Flags


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)


def test_flags_have_llavas_names_and_defaults() -> None:
    args = parse_args([])
    assert (args.host, args.port) == ("127.0.0.1", 21002)
    assert (args.worker_address, args.controller_address) == ("http://localhost:21002", "http://localhost:21001")
    assert (args.limit_model_concurrency, args.stream_interval, args.no_register) == (5, 1, False)
    given = "--model-path p --model-base b --model-name n --device cpu --load-4bit --use-flash-attn --multi-modal"
    args = parse_args([*given.split(), "--port", "1234", "--no-register"])
    assert (args.model_name, args.load_4bit, args.use_flash_attn) == ("n", True, True)
    assert args.worker_address == "http://localhost:1234"


def test_a_worker_starts_as_llavas_documentation_has_it() -> None:
    launch = "--host 0.0.0.0 --controller http://localhost:10000 --port 40000 --worker http://localhost:40000"
    args = parse_args([*launch.split(), "--model-path", "liuhaotian/llava-v1.5-13b"])
    assert (args.controller_address, args.worker_address) == ("http://localhost:10000", "http://localhost:40000")
    assert args.worker_token is None


def test_an_address_may_end_in_a_slash() -> None:
    args = parse_args(["--worker-address", "http://localhost:40000/", "--controller-address", "http://localhost:1/"])
    assert (args.worker_address, args.controller_address) == ("http://localhost:40000", "http://localhost:1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--worker-address", "localhost:21002"], "'localhost:21002': an address must read http://HOST:PORT"),
        (["--worker-address", "http://localhost:99999", "--no-register"], "argument --worker-address/--worker: 'http:"),
        (["--controller-address", "http://a/b"], "argument --controller-address: 'http://a/b': an address must read"),
        (["--worker-token", ""], "argument --worker-token: a secret may not be empty"),
        (["--controller-address", "http://10.0.0.1:21001"], "another machine's, so that --worker-token is needed"),
        (["--worker-address", "http://10.0.0.1:21002"], "another machine's, so that --worker-token is needed"),
        (["--api-key", "k"], "--worker-token"),
        (["--load-4bit", "--load-8bit"], "not allowed with"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_concurrency_limit_is_the_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(args: Any, **options: Any) -> ChatEngine:
        seen.update(options)
        raise RuntimeError("that is enough")

    monkeypatch.setattr(model_worker, "load_engine", load)
    assert (
        model_worker.main(["--limit-model-concurrency", "3", "--max-waiting", "9", "--use-flash-attn", "--port=0"]) == 2
    )
    assert seen == {"switchable": True, "limits": EngineLimits(3, max_waiting=9), "use_flash_attn": True}
