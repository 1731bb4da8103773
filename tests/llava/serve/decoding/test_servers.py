"""Costly images sent to real servers: refused with a reason, stopped with their clients, and no other request waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from llava.serve.decoding import pool
from llava.serve.decoding.pool import DecoderPool, end_process
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.workers.worker_app import ModelWorker, create_app
from scripts.soak import hostile
from tests.llava.serve.openai.serving import DEADLINE, MODEL, becomes_idle, loaded, served

SLOW = hostile.slow_jpeg()
REFUSED = [
    (hostile.LLAVA, "45000 scans"),
    (hostile.LLAVA, "wrong checksum"),
    (hostile.OPENAI, "tags in TIFF"),
    (hostile.OPENAI, "truncated PNG"),
]
ANSWERED = [(hostile.LLAVA, "tags in EXIF"), (hostile.LLAVA, "wide strip"), (hostile.OPENAI, "tall strip")]
GOOD = hostile.saved(Image.new("RGB", (64, 64)))
PREPARING = 2


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded(), limits=EngineLimits(max_preparing=PREPARING))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    with served(create_app(ModelWorker(engine, [MODEL]))) as url:
        yield url


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderPool]:
    """Decoders without effective time limits."""
    decoders = DecoderPool(PREPARING, cpu_seconds=DEADLINE, idle_seconds=DEADLINE, wall_seconds=DEADLINE)
    monkeypatch.setattr(pool, "shared_decoders", lambda: decoders)
    yield decoders
    decoders.close()


def about(path: str, image: bytes | None) -> dict[str, Any]:
    """A request about an image, or without one."""
    if image is not None:
        return hostile.good(path, MODEL, hostile.encoded(image), "What is in the picture?")
    if path == hostile.LLAVA:
        return {"model": MODEL, "prompt": "USER: Hello ASSISTANT:", "temperature": 0, "max_new_tokens": 4}
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4}


def ask(url: str, path: str, image: bytes) -> httpx.Response:
    return httpx.post(url + path, json=about(path, image), timeout=DEADLINE)


@pytest.mark.parametrize(("path", "name"), REFUSED)
def test_a_hostile_image_is_the_clients_fault(url: str, path: str, name: str) -> None:
    reply = ask(url, path, hostile.PICTURES[name][0]())
    assert reply.status_code == 400
    assert "invalid_image" in reply.text


@pytest.mark.parametrize(("path", "name"), ANSWERED)
def test_an_image_that_only_looks_costly_is_answered(url: str, path: str, name: str) -> None:
    reply = ask(url, path, hostile.PICTURES[name][0]())
    assert reply.status_code == 200
    assert '"error_code": 1' not in reply.text


@pytest.mark.parametrize("path", [hostile.LLAVA, hostile.OPENAI])
def test_text_does_not_wait_for_images_and_these_end_with_their_clients(
    url: str, engine: ChatEngine, patient: DecoderPool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def run() -> None:
        async with httpx.AsyncClient(timeout=DEADLINE, trust_env=False) as client:
            slow = [asyncio.create_task(client.post(url + path, json=about(path, SLOW))) for _ in range(2 * PREPARING)]
            while engine.waiting < len(slow):
                await asyncio.sleep(0.01)
            text = await client.post(url + path, json=about(path, None))
            assert text.status_code == 200
            assert engine.waiting == len(slow)  # the images are still being opened
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    monkeypatch.setattr(pool, "end_process", lambda process: (ended.append("killed"), end_process(process)))
    asyncio.run(run())
    assert becomes_idle(engine)
    assert ask(url, path, GOOD).status_code == 200
    assert len(ended) >= PREPARING  # by their clients' leaving: nothing else ends a decoding here
