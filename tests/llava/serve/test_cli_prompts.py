"""`llava --prompt` about several pictures and in turns, as text and as JSON; Ctrl-C ends it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image

from llava.serve import cli
from tests.interpreter import fork
from tests.llava.serve.test_cli import Loader, vicuna


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", loader)
    return loader


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.new("RGB", (30, 20)).save(path)
    return paths


def ask(pictures: list[str], *flags: str) -> int:
    """Asks "What?", then "Sure?"."""
    images = [word for path in pictures for word in ("--image-file", path)]
    return cli.main(["--model-path", "m", *images, "--prompt", "What?", "--prompt", "Sure?", *flags])


def test_prompts_are_turns_of_one_conversation_about_all_pictures(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += ["a\nring", "yes"]
    assert ask(pictures, "--one-conversation") == 0
    first = "<image>\n<image>\nWhat?"
    assert loader.model.prompts == [vicuna(first, None), vicuna(first, "a\nring", "Sure?", None)]
    assert capsys.readouterr().out == "a ring\nyes\n"


def test_a_prompt_that_is_not_utf8_is_refused_before_the_model_loads(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(pictures, "--prompt", "\udcff bad") == 2
    why = "--prompt 3 contains a lone surrogate, '\\udcff', as a byte that is not UTF-8 is read"
    assert capsys.readouterr().err == f"llava: error: {why}\n"
    assert loader.calls == []


def test_only_a_typed_length_must_fit_the_context(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += ["a ring"]
    flags = ["--model-path", "m", "--image-file", pictures[0], "--prompt", "word " * 770]  # leaves less than 512 tokens
    assert cli.main(flags) == 0
    assert loader.model.calls[0]["max_new_tokens"] < 512
    assert cli.main([*flags, "--max-new-tokens", "512"]) == 2
    assert "an answer of up to 512 exceed the model's context of 4096" in capsys.readouterr().err


def test_a_prompt_says_itself_where_the_pictures_are(loader: Loader, pictures: list[str]) -> None:
    loader.model.script += ["yes"]
    images = [word for path in pictures for word in ("--image-file", path)]
    assert cli.main(["--model-path", "m", *images, "--prompt", "Is <image> like <image>?"]) == 0
    assert loader.model.prompts == [vicuna("Is <image> like <image>?", None)]


def test_a_wrong_number_of_places_is_counted_as_the_prompt_has_them(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    images = [word for path in pictures for word in ("--image-file", path)]
    assert cli.main(["--model-path", "m", *images, "--prompt", "<image>\nWhat?"]) == 2
    assert "the prompt holds 1 <image>, but 2 images were given" in capsys.readouterr().err


def test_a_later_prompt_of_a_conversation_shows_no_picture(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += ["a ring", "yes"]
    assert ask(pictures, "--one-conversation", "--prompt", "<image> too?") == 2
    assert "error: a later question may not hold <image>: the first one shows all" in capsys.readouterr().err


def test_each_picture_is_asked_about_alone_and_named(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += ["a ring", "yes", "a cross", "no"]
    assert ask(pictures, "--each-image") == 0
    assert loader.model.prompts == [vicuna("<image>\nWhat?", None), vicuna("<image>\nSure?", None)] * 2
    a, b = pictures
    assert capsys.readouterr().out == f"{a}: a ring\n{a}: yes\n{b}: a cross\n{b}: no\n"


def test_a_picture_that_cannot_be_read_is_left_out_where_each_is_asked_about_alone(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loader.model.script += ["a cross", "no"]
    Path(pictures[0]).write_text("Dear Sir")
    assert ask(pictures, "--each-image") == 1
    assert capsys.readouterr().out == f"{pictures[1]}: a cross\n{pictures[1]}: no\n"
    assert f"left out: {pictures[0]}: not a readable image; it is broken, or not one of" in caplog.text
    assert ask(pictures) == 2  # about both together there is no answer
    Path(pictures[1]).unlink()
    assert ask(pictures, "--each-image") == 2
    assert "llava: error: none of the 2 images can be read" in capsys.readouterr().err


def test_each_picture_has_a_conversation(loader: Loader, pictures: list[str]) -> None:
    """An empty answer is a turn, too."""
    loader.model.script += ["a ring", "", "so", "a cross", "no", "so"]
    assert ask(pictures, "--each-image", "--one-conversation", "--prompt", "Why?") == 0
    first = "<image>\nWhat?"
    assert loader.model.prompts[2] == vicuna(first, "a ring", "Sure?", "...", "Why?", None)
    assert loader.model.prompts[3:] == [
        vicuna(first, None),
        vicuna(first, "a cross", "Sure?", None),
        vicuna(first, "a cross", "Sure?", "no", "Why?", None),
    ]


def test_json_has_a_line_for_each_answer(
    loader: Loader, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += ["a\nröd ring", "yes"]
    assert ask(pictures, "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["images"], first["prompt"], first["answer"]) == (pictures, "What?", "a\nröd ring")
    assert (second["prompt"], second["answer"], second["finish_reason"]) == ("Sure?", "yes", "stop")
    assert first["prompt_tokens"] > first["visual_tokens"] > 0 < first["generated_tokens"]
    assert first["first_pass_tokens"] == 0 and all(seconds >= 0 for seconds in first["seconds"].values())


def test_json_is_json_in_any_encoding(loader: Loader, pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="latin-1"))
    loader.model.script += ["\U0001f534 röd ring", "yes"]
    assert ask(pictures, "--json") == 0
    first, _ = map(json.loads, out.getvalue().decode("latin-1").splitlines())
    assert first["answer"] == "\U0001f534 röd ring"


@pytest.mark.parametrize("flag", ["--one-conversation", "--each-image", "--json"])
def test_flags_of_prompts_need_one(loader: Loader, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 2
    assert capsys.readouterr().err == f"llava: error: {flag} needs --prompt\n"
    assert loader.calls == []


def test_ctrl_c_ends_the_process_at_once_whatever_its_threads_do() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def load(args: object) -> None:
        threading.Thread(target=threading.Event().wait, args=(300,)).start()  # Python's exit would wait for it
        sender.send("busy")
        threading.Event().wait(300)

    def work() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
        cli.load = load
        return cli.main(["--prompt", "Hi"])

    process = fork(work)
    try:
        assert receiver.recv() == "busy"
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
    finally:
        process.kill()


def test_ctrl_c_at_the_question_ends_the_chat(
    loader: Loader, pictures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["--model-path", "m", "--image-file", pictures[0]]) == 130
    assert capsys.readouterr() == ("", "USER: \n")
    assert signal.getsignal(signal.SIGINT) is before
