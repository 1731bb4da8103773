"""The terminal chat's turns: questions that are typed, dropped or stopped, and how it ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from unittest.mock import Mock

import pytest
import torch

from llava.serve import cli
from llava.serve.engine.answer_stream import AnswerStream
from tests.llava.serve.test_cli import Loader, typed, vicuna


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr("llava.model.builder.load_pretrained_model", loader)
    return loader


def test_a_chat_has_turns_until_an_empty_line(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = typed(monkeypatch, "What?", "Sure?", "", "never read")
    loader.model.script += ["a ring", "yes"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert capsys.readouterr().out == "ASSISTANT: a ring\nASSISTANT: yes\n"
    assert shown == ["USER: "] * 3
    assert loader.model.prompts == [vicuna("<image>\nWhat?", None), vicuna("<image>\nWhat?", "a ring", "Sure?", None)]
    assert loader.model.temperatures == [[0.2], [0.2]]


@pytest.mark.parametrize(
    "piped",
    ["What?\nSure?\n", "\ufeff\nWhat?\n \n\nSure?\n\n", "\ufeffWhat?\nSure?"],
    ids=["lines", "empty lines between", "byte order mark"],
)
def test_piped_questions_put_their_answers_alone_on_stdout(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, piped: str
) -> None:
    """A chat has a turn for each line that holds something."""
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    loader.model.script += ["a ring", "yes"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    said = capsys.readouterr()
    assert said.out == "a ring\nyes\n"
    assert said.err == "USER: ASSISTANT: USER: ASSISTANT: USER: \n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # the latter in the C locale
@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "\\u2192 caf\xe9\n"), ("ascii", "\\u2192 caf\\xe9\n")])
def test_no_answer_is_lost_that_the_outputs_encoding_lacks(
    loader: Loader, picture: str, monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str, errors: str
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding=encoding, errors=errors, newline=""))
    loader.model.script += ["\u2192 caf\xe9"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert out.getvalue().decode(encoding) == shown
    if errors == "surrogateescape":  # as names of files are read that are not UTF-8
        print("\udce9.png", flush=True)
        assert out.getvalue().endswith(b"\xe9.png\n")
    with pytest.raises(UnicodeEncodeError):
        "\u2192".encode(encoding)


def test_a_terminal_shows_an_answers_control_characters_and_a_file_keeps_them(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture may tell the model what to write: here to clear the screen."""
    for terminal, shown in ((True, "a\tring\\x1b[2J\\x9bm\n"), (False, "a\tring\x1b[2J\x9bm\n")):
        monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        loader.model.script += ["a\tring\x1b[2J\x9bm"]
        assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
        assert capsys.readouterr().out == shown


def test_without_an_input_a_chat_ends(loader: Loader, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as a service starts programs
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert loader.model.calls == []


def test_a_terminal_has_the_keys_of_readline_and_says_how_a_chat_ends(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("readline")
    monkeypatch.delitem(sys.modules, "readline")
    typed(monkeypatch)
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert "readline" in sys.modules
    assert "an empty line or Ctrl-D ends the chat" in capsys.readouterr().err


def test_the_end_of_input_ends_a_chat(loader: Loader, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch)
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert loader.model.calls == []


@pytest.mark.parametrize("terminal", [True, False])
def test_a_second_ctrl_c_in_a_row_at_the_prompt_ends_a_chat_in_a_terminal(
    loader: Loader,
    picture: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    stop, shown = KeyboardInterrupt, []
    waiting = iter([stop, "What?", stop, stop] if terminal else [stop])

    def read(prompt: str) -> str:
        shown.append(prompt)
        line = next(waiting)
        if line is stop:
            raise stop
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", Mock(isatty=lambda: terminal))
    loader.model.script += ["a ring"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 130
    assert len(shown) == (4 if terminal else 1)
    assert capsys.readouterr().err.count("press Ctrl-C again, or Ctrl-D, to end the chat\n") == (2 if terminal else 0)


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "What?", "Sure?")
    loader.model.script += ["a ring", "yes"]
    iterate, interrupted = AnswerStream.__iter__, []

    def interrupt_once(answer: AnswerStream) -> Iterator[str]:
        stream = iterate(answer)
        yield next(stream)
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        yield from stream

    monkeypatch.setattr(AnswerStream, "__iter__", interrupt_once)
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert capsys.readouterr().out == "ASSISTANT: a\nASSISTANT: yes\n\n"


def test_ctrl_c_in_an_answer_ends_a_chat_whose_questions_are_piped(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nSure?\n"))
    loader.model.script += ["a ring", "yes"]

    def interrupt(answer: AnswerStream) -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerStream, "__iter__", interrupt)
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 130
    assert capsys.readouterr().out == "a"


def test_a_question_too_long_is_dropped_and_the_chat_goes_on(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "long " * 1000, "What?")
    loader.model.script += ["a ring"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert "exceed the model's context of 4096" in capsys.readouterr().err
    assert loader.model.prompts == [vicuna("<image>\nWhat?", None)]


def test_a_question_too_long_for_memory_is_dropped_and_the_chat_goes_on(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "Long?", "What?")
    loader.model.script += [torch.OutOfMemoryError("CUDA out of memory"), "a ring"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    said = capsys.readouterr()
    assert "llava: error: the model ran out of memory; shorten the prompt" in said.err and "a ring" in said.out
    assert loader.model.prompts[-1] == vicuna("<image>\nWhat?", None)


def test_typed_places_of_pictures_are_used_in_the_first_question_and_refused_in_later_ones(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "What is <image>?", "<image> too?", "Sure?")
    loader.model.script += ["a ring", "yes"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 0
    assert "a later question may not hold <image>" in capsys.readouterr().err
    first = "What is <image>?"
    assert loader.model.prompts == [vicuna(first, None), vicuna(first, "a ring", "Sure?", None)]


def test_a_question_that_is_not_utf8_is_dropped_and_the_chat_goes_on(
    loader: Loader, picture: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff bad\nWhat?\n"), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdin", stdin)
    loader.model.script += ["a ring"]
    assert cli.main(["--model-path", "m", "--image-file", picture]) == 1  # whoever pipes questions reads no message
    why = "the question contains a lone surrogate, '\\udcff', as a byte that is not UTF-8 is read"
    assert f"llava: error: {why}\n" in capsys.readouterr().err
    assert loader.model.prompts == [vicuna("<image>\nWhat?", None)]
