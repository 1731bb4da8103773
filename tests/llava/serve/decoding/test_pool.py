"""Images are decoded in separate processes, which are killed at a limit or on cancellation, and replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from PIL import Image

from llava.images import ImageError, ImageLimits, decode_image
from llava.serve.decoding import client
from llava.serve.decoding import pool as pool_module
from llava.serve.decoding import process as process_module
from llava.serve.decoding.pool import Cancellation, DecoderPool, UnopenedImage
from llava.serve.http.failures import RequestError, explain
from scripts.soak import hostile

ANSWERED = [name for name, (_, answered) in hostile.PICTURES.items() if answered]
REFUSED = [name for name, (_, answered) in hostile.PICTURES.items() if not answered]
SLOW = hostile.slow_jpeg()
GOOD = hostile.saved(Image.new("RGB", (64, 64), "teal"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's memory this way")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1)
    yield pool
    pool.close()


def children() -> list[psutil.Process]:
    """The decoding processes of this one, which may have others, ended ones among them."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "llava.serve.decoding.process" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.parametrize("name", ANSWERED)
def test_an_image_is_the_one_that_this_process_would_decode(pool: DecoderPool, name: str) -> None:
    data = hostile.PICTURES[name][0]()
    assert pool.decode(data).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_process_would_refuse_is_refused(pool: DecoderPool, name: str) -> None:
    with pytest.raises(ImageError):
        pool.decode(hostile.PICTURES[name][0]())
    assert pool.decode(GOOD).size == (64, 64)


def test_a_servers_own_limits_hold(pool: DecoderPool) -> None:
    with pytest.raises(ImageError, match="64x64 pixels; at most 100 pixels"):
        pool.decode(GOOD, ImageLimits(max_pixels=100))


@linux
def test_a_processs_memory_is_bounded_by_the_image_that_it_decodes() -> None:
    pool = DecoderPool(1)
    before = {process.pid for process in children()}
    try:
        pool.decode(GOOD)
        (process,) = [process for process in children() if process.pid not in before]
        soft, _ = process.rlimit(psutil.RLIMIT_AS)
        room = 64 * 2**20 + 2 * len(GOOD) + 16 * 64 * 64
        assert process.memory_info().vms < soft < process.memory_info().vms + room + 16 * 2**20
        pool.decode(hostile.PICTURES["wide strip"][0]())
        assert process.rlimit(psutil.RLIMIT_AS)[0] > soft + 16 * 4_000_000
    finally:
        pool.close()


@linux
def test_an_image_that_takes_too_long_ends_its_process_and_not_the_next_image() -> None:
    pool = DecoderPool(1, cpu_seconds=0.1)  # the kernel counts whole seconds
    try:
        with pytest.raises(ImageError, match=r"takes more than 0.1 s; make it smaller"):
            pool.decode(SLOW)
        assert pool.decode(GOOD).size == (64, 64)
    finally:
        pool.close()


def test_an_image_that_takes_for_ever_is_ended_by_the_clock() -> None:
    pool = DecoderPool(1, wall_seconds=60)
    try:
        pool.decode(GOOD)
        pool.wall_seconds = 0.3
        with pytest.raises(ImageError, match="takes more than"):
            pool.decode(SLOW)
    finally:
        pool.close()


def test_cancelling_ends_a_decoding_at_once() -> None:
    pool, cancellation, caught = DecoderPool(1, cpu_seconds=600, wall_seconds=600), Cancellation(), []
    before = {process.pid for process in children()}
    try:
        pool.decode(GOOD)
        (process,) = [process for process in children() if process.pid not in before]

        def work() -> None:
            try:
                pool.decode(SLOW, cancellation=cancellation)
            except RequestError as error:
                caught.append(error.kind)

        thread, started_with = threading.Thread(target=work), process.cpu_times().user
        thread.start()
        while process.cpu_times().user < started_with + 0.3 and thread.is_alive():
            process.cpu_percent(0.01)
        cancellation.cancel()
        thread.join(60)
        assert caught == ["client_gone"]
        assert process.pid not in {child.pid for child in children()}
        assert pool.decode(GOOD).size == (64, 64)
    finally:
        pool.close()


def test_what_was_cancelled_beforehand_is_not_begun(pool: DecoderPool) -> None:
    image = UnopenedImage(lambda: GOOD, decoders=pool)
    assert image().size == (64, 64)
    image.cancel()
    with pytest.raises(RequestError, match="the client has gone"):
        image()
    assert pool.decode(GOOD).size == (64, 64)


def test_cancelling_after_the_end_leaves_the_next_image_alone(pool: DecoderPool) -> None:
    cancellation = Cancellation()
    pool.decode(GOOD, cancellation=cancellation)
    before = children()
    cancellation.cancel()
    assert pool.decode(GOOD).size == (64, 64)
    assert children() == before


def test_a_process_that_was_killed_from_outside_is_replaced(pool: DecoderPool) -> None:
    pool.decode(GOOD)
    for process in children():
        process.kill()
        process.wait(60)
    assert pool.decode(GOOD).size == (64, 64)


FAILING = """
import json, sys
size = json.loads(sys.stdin.buffer.readline())["bytes"]
sys.stdin.buffer.read(size)
print(json.dumps({"fault": "KeyError: '/secret'"}), flush=True)
sys.stdin.read()
"""


def test_an_error_in_a_process_is_logged_and_kept_from_the_client(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", FAILING]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(pool_module, "start_process", start)
    pool = DecoderPool(1)
    try:
        with pytest.raises(ImageError, match=r"^the image could not be opened; save it again in another format$"):
            pool.decode(GOOD)
        assert "KeyError: '/secret'" in caplog.text and "exit code" not in caplog.text
        assert len(started) == 2 and started[0].returncode is not None  # it was replaced
    finally:
        pool.close()


def test_an_unexpected_error_of_a_decoder_is_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Image.Image:
        raise KeyError("plane")

    monkeypatch.setattr(process_module, "decode_image", fail)
    request, out = {"limits": asdict(ImageLimits()), "fits": True}, BytesIO()
    process_module.answer(request, GOOD, SimpleNamespace(allow_pixels=None), BytesIO(), out)
    assert out.getvalue() == b'{"fault": "KeyError: \'plane\'"}\n'


def test_a_process_without_pipes_is_a_fault_of_the_server() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        with pytest.raises(RuntimeError, match="no pipes to and from it") as caught:
            client.exchange(process, GOOD, ImageLimits(), 1.0)
        assert explain(caught.value).status == 500
    finally:
        client.end_process(process)


def test_waiting_for_a_busy_pool_ends_with_503() -> None:
    pool = DecoderPool(0, wait_seconds=0.01)
    with pytest.raises(RequestError, match="too many images are being opened") as caught:
        pool.decode(GOOD)
    assert caught.value.status == 503


@linux
def test_a_process_finds_the_source_tree_holds_no_secrets_and_no_torch_and_ends_with_its_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_API_KEY", "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    pool, before = DecoderPool(1), {process.pid for process in children()}
    try:
        assert pool.decode(GOOD).size == (64, 64)
        (process,) = [process for process in children() if process.pid not in before]
        assert "secret-key" not in str(process.environ())
        assert not any("torch" in entry.path for entry in process.memory_maps())
    finally:
        pool.close()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize("size", [(64, 48), (500, 333), (20, 300)])
def test_an_image_resized_on_its_way_is_the_one_resized_here(pool: DecoderPool, size: tuple[int, int]) -> None:
    image = hostile.noise(*size)
    smaller = (max(4, size[0] // 3), max(4, size[1] // 2))
    fitted = pool.decode(hostile.saved(image), fit=lambda width, height: smaller)
    assert fitted.tobytes() == image.resize(smaller, Image.Resampling.BICUBIC).tobytes()
    larger = pool.decode(hostile.saved(image), fit=lambda width, height: (2 * width, 2 * height))
    assert larger.tobytes() == image.tobytes()  # making it larger is left to this process


def test_a_size_that_cannot_be_chosen_leaves_the_pool_well(pool: DecoderPool) -> None:
    def fail(width: int, height: int) -> tuple[int, int]:
        raise LookupError("no size")

    with pytest.raises(LookupError, match="no size"):
        pool.decode(GOOD, fit=fail)
    assert pool.decode(GOOD).size == (64, 64)


def test_a_source_tree_that_is_not_installed_is_on_the_processs_import_path() -> None:
    assert (Path(client._import_path()[0]) / "llava" / "serve" / "decoding" / "client.py").is_file()
