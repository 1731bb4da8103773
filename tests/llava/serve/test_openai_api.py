"""The OpenAI-compatible server as a program."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from typing import Any

import httpx
import pytest

from llava.serve import openai_api
from llava.serve.http import server
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.listening import Listener
from tests.llava.serve.openai.replies import error_of
from tests.llava.serve.openai.serving import (
    CHAT,
    DEADLINE,
    QUESTION,
    body,
    data_url,
    served,
    user,
)
from tests.llava.serve.programs import eventually, free_port, running
from tests.llava.serve.slow_worker import said


def test_the_program_serves_what_its_flags_say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    apps: list[tuple[Any, str, int]] = []

    def serve(app: Any, listener: Listener, on_start: Any, on_stop: Any, limits: ConnectionLimits) -> None:
        assert limits.most == 77
        apps.append((app, listener.host, listener.port))
        asyncio.run(on_start())

    monkeypatch.setattr(server, "serve", serve)
    flags = "--served-model-name tiny other --api-key sesame --max-images 1 --max-batch 2 --max-waiting 3 --port 0"
    assert openai_api.main([*flags.split(), "--max-connections", "77"]) == 0
    ((app, host, port),) = apps
    printed = capsys.readouterr().err
    assert host == "127.0.0.1" and port > 0
    assert f"tiny, other at http://127.0.0.1:{port}/v1" in printed
    assert "anyone who reaches" not in printed
    with served(app) as url, httpx.Client(base_url=url, headers={"Authorization": "Bearer sesame"}) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "other"]
        error_of(
            client.post(CHAT, json=body(user(QUESTION, *[data_url()] * 2)) | {"model": "other"}), 400, "too_many_images"
        )
        error_of(client.get("/health"), 503, "shutting_down")  # the program has ended


def test_a_program_names_an_ipv6_address_as_a_url(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(server, "serve", lambda *address, on_start, **options: asyncio.run(on_start()))
    assert openai_api.main(["--host", "::1", "--port=0"]) == 0
    assert re.search(r" at http://\[::1\]:[0-9]+/v1$", capsys.readouterr().err, re.MULTILINE)


def test_a_program_open_to_all_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server, "serve", lambda *address, on_start, **options: asyncio.run(on_start()))
    for flags, warned in (("--host 0.0.0.0", True), ("--host 0.0.0.0 --api-key a", False), ("--host ::1", False)):
        assert openai_api.main([*flags.split(), "--port=0"]) == 0
        assert ("may use this server; --api-key" in caplog.text) == warned
        caplog.clear()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-path", "/nowhere"], "/nowhere"),
        (["--no-qlip", "--alpha", "1"], "--no-qlip contradicts --alpha"),
    ],
)
def test_wrong_flags_end_the_program_in_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert openai_api.main([*flags, "--port=0"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("openai_api: error: ")
    assert words in last


def test_a_program_told_to_stop_ends_its_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    port = free_port()
    request = body({"role": "user", "content": "Hello"}, max_tokens=400, stream=True) | {"model": "slow"}
    with running("tests.llava.serve.slow_api", port, "--served-model-name", "slow") as program:
        program.says(f"slow at http://127.0.0.1:{port}/v1")
        url = f"http://127.0.0.1:{port}{CHAT}"
        with httpx.stream("POST", url, json=request, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            assert any('"content":""' in line for line in lines)  # it is accepted
            program.signal(signal.SIGTERM)
            eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 503)
            refused = httpx.post(url, json=request)
            error_of(refused, 503, "shutting_down")
            assert int(refused.headers["Retry-After"]) > 0
            *chunks, done = [line.removeprefix("data: ") for line in lines if line]
            assert done == "[DONE]"
            deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
            assert "".join(delta.get("content", "") for delta in deltas) == said(400)
        assert program.has_ended()
        assert program.process.exitcode in (0, -signal.SIGTERM)
