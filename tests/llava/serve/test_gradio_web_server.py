"""The web demo's flags reach its page; those that cannot work are one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.serve.gradio_web_server import main
from llava.serve.web import launch


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model-path", "{tmp}/nothing"], "nothing"),
        (["--feedback-dir", __file__], "test_gradio_web_server.py is a file; name a folder"),
        (["--moderate"], "--moderate needs an OpenAI key in the environment variable OPENAI_API_KEY"),
        (["--controller-url", "http://x", "--native-size", "3"], "native size is 3; it must be at least 14"),
        (["--controller-url", "http://x", "--alpha", "1", "--load-4bit"], "so --alpha, --load-4bit cannot be given"),
    ],
)
def test_flags_that_cannot_work_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main([*(flag.format(tmp=tmp_path) for flag in flags), "--port=0"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gradio_web_server: error: ")
    assert expected in last


def test_without_flags_the_embedded_models_page_is_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[Any, ...]] = []
    monkeypatch.setattr(launch, "serve", lambda *args, **options: served.append((*args, options)))
    assert main(["--port=0", "--concurrency-count=3", "--max-visitors=5", "--embed"]) == 0
    ((page, host, port, share, options),) = served
    assert (host, share, options) == ("127.0.0.1", False, {"concurrency": 3})
    assert port > 0
    assert {"ask", "look", "compare"} <= {event.api_name for event in page.fns.values()}
    assert "a tiny model that only knows coloured shapes and short signs" in capsys.readouterr().err
