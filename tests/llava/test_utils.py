"""The embedded demo is found where it is installed, and logs and devices are what they are called."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import redirect_stdout
from importlib.machinery import ModuleSpec
from pathlib import Path

import httpx
import pytest
import torch

from llava import utils
from llava.moderation import ModerationError


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `playground` in an empty folder."""
    spec = ModuleSpec("playground", None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(utils, "find_spec", {"playground": spec}.__getitem__)
    return tmp_path


def test_the_demo_model_is_the_folder_with_its_config(playground: Path) -> None:
    (playground / "llava-demo").mkdir()
    (playground / "llava-demo" / "config.json").touch()
    assert utils.demo_model_path() == playground / "llava-demo"


def test_the_demo_picture_is_the_first_by_name(playground: Path) -> None:
    (playground / "pictures").mkdir()
    for name in ("b.png", "a.png", "a.jpg", "a.leaves.png"):
        (playground / "pictures" / name).touch()
    assert utils.demo_picture_path() == playground / "pictures" / "a.png"
    assert utils.demo_picture_paths() == [playground / "pictures" / name for name in ("a.png", "b.png")]


def test_a_missing_demo_is_a_clear_error(playground: Path) -> None:
    with pytest.raises(FileNotFoundError, match="demo model is missing: no config.json in"):
        utils.demo_model_path()
    with pytest.raises(FileNotFoundError, match="demo picture is missing"):
        utils.demo_picture_path()


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no package named 'playground'"):
        utils.demo_model_path()


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_default_device_is_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert utils.default_device() == device


def test_a_logger_writes_each_line_once_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "LOGDIR", str(tmp_path / "logs"))
    logger = utils.build_logger("llava.test", "test.log")
    assert utils.build_logger("llava.test", "test.log") is logger
    logger.info("hello")
    lines = (tmp_path / "logs" / "test.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("| INFO | llava.test | hello")
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)


def test_a_semaphore_prints_its_free_places() -> None:
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.pretty_print_semaphore(asyncio.Semaphore(3)) == "Semaphore(value=3, locked=False)"


def test_layers_keep_their_initial_values_when_clients_ask_to_disable_them() -> None:
    utils.disable_torch_init()
    assert torch.nn.Linear(8, 8).weight.abs().sum() > 0


def test_a_stream_logs_whole_lines_and_what_is_left_when_flushed(caplog: pytest.LogCaptureFixture) -> None:
    stream = utils.StreamToLogger(logging.getLogger("llava.stream"), logging.WARNING)
    with caplog.at_level(logging.INFO):
        print("one", file=stream)
        print("t", "wo\nthree", end="", sep="", file=stream)
        assert [record.message for record in caplog.records] == ["one", "two"]
        stream.flush()
        stream.flush()
    assert [(record.message, record.levelno) for record in caplog.records][2:] == [("three", logging.WARNING)]


def test_stdout_can_be_sent_to_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), redirect_stdout(utils.StreamToLogger(logging.getLogger("llava.stream"))):
        print("hello")
    assert caplog.messages == ["hello"]


def test_building_a_logger_leaves_the_streams_as_they_are() -> None:
    before = sys.stdout, sys.stderr
    utils.build_logger("llava.streams")
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("flagged", [True, False])
def test_moderation_is_asked_with_the_key_of_the_environment(flagged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((str(request.url), request.headers["authorization"], json.loads(request.content)["input"]))
        return httpx.Response(200, json={"results": [{"flagged": flagged}]})

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=httpx.MockTransport(answer), **options))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert utils.violates_moderation("Hello?") is flagged
    assert asked == [("https://api.openai.com/v1/moderations", "Bearer secret", "Hello?")]


def test_without_a_key_or_a_verdict_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="needs an OpenAI key in the environment variable OPENAI_API_KEY"):
        utils.violates_moderation("Hello?")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(ModerationError, match="gave no verdict"):
        utils.violates_moderation("Hello?")


def test_pages_have_words_for_failures() -> None:
    assert utils.server_error_msg and utils.moderation_msg
