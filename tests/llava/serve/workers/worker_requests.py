"""Requests of LLaVA's clients to a worker."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.workers.worker_app import ModelWorker, create_app
from llava.utils import demo_picture_paths
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import DEADLINE, served

NAME = "llava-demo"
QUESTION = "What is in the picture?"


def encoded(data: bytes | None = None) -> str:
    return base64.b64encode(demo_picture_paths()[0].read_bytes() if data is None else data).decode()


def png(size: tuple[int, int], mode: str = "RGB", format: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, format)
    return buffer.getvalue()


def prompt_for(engine: ChatEngine, question: str = QUESTION, images: int = 1) -> str:
    return engine.question(question, images).get_prompt()


def request(engine: ChatEngine, **fields: Any) -> dict[str, Any]:
    asked = {"model": NAME, "prompt": prompt_for(engine), "temperature": 0, "images": [encoded()], "stop": "</s>"}
    return {**asked, **fields}


def post(url: str, content: Any, **options: Any) -> httpx.Response:
    return httpx.post(url + "/worker_generate_stream", timeout=DEADLINE, **{"json": content, **options})


def told(reply: httpx.Response) -> dict[str, Any]:
    """The one frame of a refusal."""
    assert reply.content.endswith(b"\0") and reply.content.count(b"\0") == 1
    return json.loads(reply.content[:-1])


def png_of(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def scripted(script: list[Any], **options: Any) -> Iterator[str]:
    engine = ChatEngine(BytesTokenizer(), ScriptedModel(script, **options.pop("config", {})), SquareProcessor(), 4096)
    with served(create_app(ModelWorker(engine, ["m"], **options))) as url:
        yield url
    engine.close()
