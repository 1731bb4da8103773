"""A decoder process is ended where it computes nothing, not where a busy machine lets it compute little."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from llava.images import ImageError
from llava.serve.decoding import pool as pool_module
from llava.serve.decoding.pool import DecoderPool
from llava.serve.decoding.watchdog import processor_seconds
from scripts.soak import hostile

GOOD = hostile.saved(Image.new("RGB", (64, 64), "teal"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports another process's time this way")

STARVED = """
import json, sys, time
size = json.loads(sys.stdin.buffer.readline())["bytes"]
sys.stdin.buffer.read(size)
for turn in range(TURNS):
    end = time.process_time() + SHARE
    while time.process_time() < end:
        pass
    time.sleep(0.1)
sys.stdout.buffer.write(b'{"size": [1, 1]}\\n' + bytes(3))
sys.stdout.flush()
sys.stdin.read()
"""


@linux
@pytest.mark.parametrize(("share", "turns", "opened"), [(0.02, 12, True), (0, 600, False)], ids=["slowly", "hanging"])
def test_elapsed_time_ends_an_image_only_where_its_process_computes_nothing(
    monkeypatch: pytest.MonkeyPatch, share: float, turns: int, opened: bool
) -> None:
    command = [sys.executable, "-S", "-c", STARVED.replace("SHARE", str(share)).replace("TURNS", str(turns))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    monkeypatch.setattr(pool_module, "start_process", lambda: subprocess.Popen(command, **pipes))
    pool = DecoderPool(1, idle_seconds=0.8, wait_seconds=0.01)  # as on a machine that is busy with other processes
    try:
        if opened:
            assert pool.decode(GOOD).size == (1, 1)
        else:
            with pytest.raises(ImageError):
                pool.decode(GOOD)
    finally:
        pool.close()


def test_a_process_that_is_not_there_has_no_processor_time() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert processor_seconds(process.pid) is None
