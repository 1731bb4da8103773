"""The terminal chat: answers on stdout, all else on stderr, mistakes in one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from llava.conversation import conv_templates
from llava.serve import cli
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor


class Loader:
    """Takes the place of `load_pretrained_model`: keeps what it is called with and gives a scripted model."""

    def __init__(self) -> None:
        self.model = ScriptedModel([])
        self.calls: list[dict[str, Any]] = []

    def __call__(self, model_path: str, model_base: str | None, model_name: str, **options: Any) -> tuple[Any, ...]:
        self.calls.append({"model_path": model_path, "model_base": model_base, "model_name": model_name, **options})
        return BytesTokenizer(), self.model, SquareProcessor(), 4096

    @property
    def call(self) -> dict[str, Any]:
        (call,) = self.calls
        return call


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", loader)
    return loader


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    """Lets a terminal's `input` give these lines, then their end; returns the list of the questions it showed."""
    shown: list[str] = []
    waiting: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        shown.append(prompt)
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", Mock(isatty=lambda: True))
    return shown


def vicuna(*texts: str | None) -> str:
    conversation = conv_templates["vicuna_v1"].copy()
    for i, text in enumerate(texts):
        conversation.append_message(conversation.roles[i % 2], text)
    return conversation.get_prompt()


# One-shot


def test_each_prompt_is_a_fresh_conversation_and_one_line(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = typed(monkeypatch, "never read")
    loader.model.script += ["a red circle\nand a ring ", "yes"]
    code = cli.main(["--model-path", "m", "--image-file", picture, "--prompt", "What?", "--prompt", "Sure?"])
    assert code == 0
    assert capsys.readouterr().out == "a red circle and a ring\nyes\n"
    assert loader.model.prompts == [vicuna("<image>\nWhat?", None), vicuna("<image>\nSure?", None)]
    assert shown == []


def test_several_pictures_come_before_the_question(loader: Loader, picture: str) -> None:
    loader.model.script += ["yes"]
    cli.main(["--model-path", "m", "--image-file", picture, "--image-file", picture, "--prompt", "Same?"])
    assert loader.model.prompts == [vicuna("<image>\n<image>\nSame?", None)]
    assert len(loader.model.calls[0]["images"]) == 2


@pytest.mark.parametrize(
    ("flags", "temperature"),
    [([], None), (["--temperature", "0"], None), (["--temperature", "0.5"], 0.5)],
)
def test_one_shot_is_greedy_unless_a_temperature_is_given(
    loader: Loader, picture: str, flags: list[str], temperature: float | None
) -> None:
    loader.model.script += ["yes"]
    cli.main(["--model-path", "m", "--image-file", picture, "--prompt", "Hi", *flags])
    assert loader.model.temperatures == [[temperature] if temperature else []]


# Which model, and how it sees


@pytest.mark.parametrize(
    ("flags", "option"),
    [
        ([], None),
        (["--qlip"], True),
        (["--no-qlip"], False),
        (["--alpha", "0"], {"alpha": 0.0}),
        (["--budget", "question"], {"budget": "question"}),
        (["--qlip", "--max-tokens", "64", "--image-size", "672"], {"max_tokens": 64, "image_size": 672}),
    ],
)
def test_quadtree_flags_override_the_checkpoints_fields_one_by_one(
    loader: Loader, picture: str, flags: list[str], option: object
) -> None:
    loader.model.script += ["yes"]
    cli.main(["--model-path", "m", "--image-file", picture, "--prompt", "Hi", *flags])
    assert loader.call["qlip"] == option
    assert type(loader.call["qlip"]) is type(option)


def test_model_flags_reach_the_loader(loader: Loader, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava.utils.devices", lambda: ["cpu", "cuda:0", "cuda:1"])
    loader.model.script += ["yes"]
    flags = ["--model-path", "some/llava", "--model-base", "base", "--device", "cuda:1", "--load-4bit"]
    cli.main([*flags, "--image-file", picture, "--prompt", "Hi", "--conv-mode", "llava_v1", "--max-new-tokens", "7"])
    assert loader.call == {
        "model_path": "some/llava",
        "model_base": "base",
        "model_name": "llava",
        "load_8bit": False,
        "load_4bit": True,
        "device": "cuda:1",
        "use_flash_attn": False,
        "qlip": None,
    }
    assert loader.model.prompts[0].startswith(conv_templates["llava_v1"].system)
    assert loader.model.calls[0]["max_new_tokens"] == 7


def test_debug_shows_the_prompt(loader: Loader, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    loader.model.script += ["yes"]
    cli.main(["--model-path", "m", "--image-file", picture, "--prompt", "Hi", "--debug"])
    assert repr(vicuna("<image>\nHi", None)) in capsys.readouterr().err


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "Hi"], "--image-file is required with --model-path"),
        (["--image-file", "PICTURE", "--prompt", ""], "llava: error: the question is empty (--prompt)\n"),
        (["--image-file", "PICTURE", "--prompt", "Hi", "--prompt", " "], "the question is empty (--prompt 2)\n"),
        (
            ["--image-file", "PICTURE", "--one-conversation", "--prompt", "Hi", "--prompt", "and <image>?"],
            "a later question may not hold <image>: the first one shows all pictures",
        ),
        (["--image-file", ""], "llava: error: argument --image-file: the name is empty"),
        (["--image-file", "PICTURE", "--model-path", ""], "argument --model-path: the name is empty"),
        (["--image-file", "PICTURE", "--show-quadtree", ""], "argument --show-quadtree: the name is empty"),
        (["--image-file", "file:///tmp/a%20b.png"], "file: URLs are not allowed; give the path, /tmp/a b.png"),
        (["--image-file", "nowhere.png"], "no such image file: nowhere.png"),
        (["--image-file", " nowhere.png"], "no such image file: ' nowhere.png'"),
        (["--image-file", "file:///etc/passwd"], "file: URLs are not allowed"),
        (["--image-file", "PICTURE", "--image-file", "TEXT", "--image-file", "PICTURE"], "notes.txt: not a readable"),
        (["--image-file", "PICTURE", "--temperature", "hot"], "argument --temperature: 'hot' is not allowed; it must"),
        (["--image-file", "PICTURE", "--conv-mode", "vicuna"], "argument --conv-mode: invalid choice: 'vicuna'"),
        (["--image-file", "PICTURE", "--conv-mode", "vicuna"], "llava_v1"),
        (["--image-file", "PICTURE", "--show-quadtree", "PICTURE"], "a picture of --image-file; name another file"),
        (["--image-file", "PICTURE", "--show-quadtree", "seen.txt"], "--show-quadtree seen.txt: use the ending of"),
        (["--image-file", "PICTURE", "--show-quadtree", "no/a.png"], "--show-quadtree no/a.png: there is no folder no"),
        (["--image-file", "PICTURE", "--show-attribution", "/no/a.png"], "/no/a.png: there is no folder /no"),
        (["--image-file", "PICTURE", "--show-attribution", "PICTURE"], "--show-attribution would write to"),
        (["--image-file", "PICTURE", "--show-attribution", "seen.txt"], "--show-attribution seen.txt: use the ending"),
        (
            ["--image-file", "PICTURE", "--show-quadtree", "a.png", "--show-attribution", "a.png"],
            "--show-attribution would write to a.png, which --show-quadtree writes, too; name another file",
        ),
        (["--image-file", "PICTURE", "--no-qlip", "--max-tokens", "9"], "--no-qlip contradicts --max-tokens"),
        (["--image-file", "PICTURE", "--no-qlip", "--show-quadtree", "a.png"], "--no-qlip contradicts --show-quadtree"),
        (["--image-file", "PICTURE", "--load-8bit", "--load-4bit"], "not allowed with argument --load-8bit"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_model_loads(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    notes = Path(picture).with_name("notes.txt")
    notes.write_text("no picture")
    flags = [{"PICTURE": picture, "TEXT": str(notes)}.get(flag, flag) for flag in flags]
    before = Path(picture).read_bytes()
    try:
        code = cli.main(["--model-path", "m", *flags])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert loader.calls == []
    assert Path(picture).read_bytes() == before


def test_a_tower_without_leaves_cannot_be_drawn(
    loader: Loader, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--image-file", picture, "--prompt", "Hi", "--show-quadtree", str(tmp_path / "seen.png")]
    assert cli.main(["--model-path", "m", *flags]) == 2
    assert capsys.readouterr().err == ("llava: error: --show-quadtree needs a model with a quadtree; add --qlip\n")


def test_an_empty_answer_is_not_drawn(
    loader: Loader, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader.model.script += [""]
    flags = ["--image-file", picture, "--prompt", "Hi", "--show-attribution", str(tmp_path / "heat.png")]
    assert cli.main(["--model-path", "m", *flags]) == 0
    assert "--show-attribution: the answer is empty, so nothing is drawn" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_models_failure_is_one_line_too_and_whole_with_debug(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-path", "m", "--image-file", picture, "--prompt", "Hi"]
    loader.model.script += [RuntimeError("out of\nmemory"), RuntimeError("out of\nmemory")]
    assert cli.main(flags) == 2
    assert capsys.readouterr().err == "llava: error: out of memory\n"
    with pytest.raises(RuntimeError, match="the model failed") as failed:
        cli.main([*flags, "--debug"])
    assert str(failed.value.__cause__) == "out of\nmemory"
