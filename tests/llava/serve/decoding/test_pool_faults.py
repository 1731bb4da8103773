"""A pool of decoder processes survives faults around it: no process to be had, strange files, a late cancellation."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.serve.decoding import pool as pool_module
from llava.serve.decoding.pool import Cancellation, DecoderPool
from llava.serve.http.failures import RequestError
from scripts.soak import hostile

GOOD = hostile.saved(Image.new("RGB", (64, 64), "teal"))


def test_a_pool_whose_processes_cannot_be_started_answers_503_until_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_process() -> subprocess.Popen[bytes]:
        raise OSError(errno.EMFILE, "Too many open files")

    fresh = DecoderPool(2, wait_seconds=0.01)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "start_process", start_process)
            for _ in range(3):  # more often than there are processes
                with pytest.raises(RequestError, match="the server cannot open images now") as caught:
                    fresh.decode(GOOD)
                assert caught.value.status == 503
        assert fresh.decode(GOOD).size == (64, 64)
    finally:
        fresh.close()


def test_files_in_the_servers_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    pool = DecoderPool(1)
    try:
        assert pool.decode(GOOD).size == (64, 64)
    finally:
        pool.close()


def test_a_process_that_is_cancelled_at_the_end_of_its_image_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, cancellation, exchange = DecoderPool(1), Cancellation(), pool_module.exchange

    def cancel_at_the_end(*given: Any) -> Image.Image:
        image = exchange(*given)
        cancellation.cancel()
        return image

    try:
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "exchange", cancel_at_the_end)
            pool.decode(GOOD, cancellation=cancellation)
        assert pool.decode(GOOD).size == (64, 64)
    finally:
        pool.close()
