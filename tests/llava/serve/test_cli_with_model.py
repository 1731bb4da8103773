"""The terminal chat from end to end, on checkpoints on disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import qlip
from llava.serve import cli, drawings
from llava.serve.engine import explain
from llava.utils import demo_model_path, demo_picture_path
from tests.interpreter import fork
from tests.llava.checkpoints import make_llava_checkpoint, transformers_model, write_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llava_checkpoint(tmp_path_factory.mktemp("llava")))


def run(folder: Path, *flags: str) -> tuple[int | None, str, str]:
    """Runs the command with a stdin that nobody closes, which a one-shot run must not wait for.

    Returns:
        Its exit code, and what it wrote to stdout and to stderr.
    """
    reader, writer = os.pipe()

    def work() -> int:
        with (
            open(folder / "out", "w") as sys.stdout,
            open(folder / "err", "w") as sys.stderr,
            open(reader) as sys.stdin,
        ):
            return cli.main(list(flags))

    process = fork(work)
    process.join(300)
    process.kill()
    for end in (reader, writer):
        os.close(end)
    return process.exitcode, (folder / "out").read_text(), (folder / "err").read_text()


def test_the_command_answers_each_prompt_on_a_line_and_alike_every_time(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-path", checkpoint, "--image-file", picture, "--device", "cpu", "--max-new-tokens", "5"]
    flags += ["--prompt", "What?", "--prompt", "What?"]
    code, out, err = run(tmp_path, *flags)
    assert code == 0, err
    first, second = out.splitlines()
    assert first == second
    assert cli.main(flags) == 0
    assert capsys.readouterr().out == out


def test_a_checkpoint_can_be_made_to_see_by_quadtree_and_drawn(
    checkpoint: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen.png"
    flags = ["--model-path", checkpoint, "--image-file", picture, "--device", "cpu", "--max-new-tokens", "2"]
    assert cli.main([*flags, "--prompt", "What?", "--max-tokens", "20", "--show-quadtree", str(seen)]) == 0
    assert Image.open(seen).getbbox() is not None
    tokens = int(capsys.readouterr().err.partition(f"{seen}: ")[2].split()[0])
    assert 1 <= tokens <= 20


def test_the_drawing_shows_each_pictures_leaves(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(qlip, "draw_leaves", lambda image, leaves: (drawn.append(len(leaves)), image)[1])
    other = str(demo_picture_path())
    flags = ["--device", "cpu", "--max-new-tokens", "2", "--prompt", "What?", "--model-path", str(demo_model_path())]
    flags += ["--qlip", "--image-file", picture, "--image-file", other, "--show-quadtree", str(tmp_path / "seen.png")]
    assert cli.main(flags) == 0
    assert Image.open(tmp_path / "seen.png").size == (120, 80)
    assert Image.open(tmp_path / "seen-2.png").size == Image.open(other).size
    shown = re.findall(r"/(seen\S*): (\d+) visual tokens\n", capsys.readouterr().err)
    assert shown == [("seen.png", str(drawn[0])), ("seen-2.png", str(drawn[1]))]


def test_a_drawing_tells_what_the_question_is_asked_about_and_the_most_that_it_may_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen.png"
    flags = ["--device", "cpu", "--max-new-tokens", "2", "--prompt", "What?", "--budget", "question"]
    assert cli.main([*flags, "--show-quadtree", str(seen)]) == 0
    shown = capsys.readouterr().err.partition(f"{seen}: ")[2]
    first, most = re.match(r"(\d+) visual tokens, which the question splits to (\d+)\n", shown).groups()
    assert int(first) == 64 < int(most) <= 128  # the embedded model's native grid, and its budget


def test_the_first_pass_of_a_question_is_told_with_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--device", "cpu", "--max-new-tokens", "3", "--prompt", "What is in the picture?", "--debug", "--json"]
    assert cli.main([*flags, "--budget", "question"]) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["first_pass_tokens"] == 64 < record["visual_tokens"]
    assert list(record["seconds"]) == ["queue", "first_pass", "image", "prefill", "decode"]
    assert record["seconds"]["first_pass"] > 0
    assert f"{record['visual_tokens']} visual, 64 in a first pass, " in said.err
    assert re.search(r"; 3 generated; seconds: queue \d+\.\d{3}, first_pass \d", said.err)
    assert cli.main(flags) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["first_pass_tokens"] == 0 and "first pass" not in said.err


@pytest.mark.parametrize("flags", [["--qlip"], ["--load-8bit"]], ids=["qlip", "8 bits"])
def test_a_checkpoint_whose_tower_states_half_precision_answers(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """transformers' format, which states a dtype for each part."""
    transformers_model().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags += ["--model-path", str(tmp_path), "--image-file", picture, "--device", "cpu", "--max-new-tokens", "2"]
    assert cli.main([*flags, "--prompt", "What?"]) == 0, capsys.readouterr().err
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"\0" * 99, "model.safetensors is damaged or cut short (99 bytes)"),
        ("model.safetensors", None, "holds no weights: expected model.safetensors"),
        ("config.json", b"[]", "config.json holds no JSON object"),
        ("config.json", b"", "config.json is not valid JSON"),
        ("preprocessor_config.json", b"{", "preprocessor_config.json is not valid JSON"),
        ("tokenizer.model", None, "has no tokenizer.model and no tokenizer.json"),
        ("tokenizer.model", b"\0" * 99, "tokenizer.model is not a SentencePiece model"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON"),
        (
            "adapter_config.json",
            b"{}",
            "is a lora checkpoint: it needs its language model; give model_base (--model-base)",
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_line_that_names_the_file(
    checkpoint: str,
    picture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: str,
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    flags = ["--model-path", str(folder), "--image-file", picture, "--device", "cpu", "--prompt", "Hi"]
    assert cli.main(flags) == 2
    captured = capsys.readouterr()
    [*progress, line] = captured.err.splitlines()
    assert captured.out == "" and all(text.startswith("Loading weights") for text in progress)
    assert line.startswith(f"llava: error: {folder}") and words in line


def test_a_hub_id_that_is_not_in_the_cache_is_one_line(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["--model-path", "some/model", "--image-file", picture, "--prompt", "Hi"]) == 2
    assert capsys.readouterr().err.startswith("llava: error: 'some/model' is neither a folder nor a model id that the")


def test_a_missing_checkpoint_is_one_clear_line(
    picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-path", str(tmp_path / "nothing"), "--image-file", picture, "--prompt", "Hi"]
    assert cli.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("llava: error: ")
    assert "nothing" in captured.err


def test_without_flags_the_command_talks_about_the_demo_picture_and_says_what_it_is(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--prompt", "What is in the picture?")
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert "a tiny model that only knows coloured shapes and short signs" in err
    assert "llava --model-path liuhaotian/llava-v1.5-7b --image-file" in err


def test_what_the_last_answer_depended_on_is_drawn_into_each_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, other = str(demo_picture_path()), str(demo_picture_path().with_name("3-large-shapes.png"))
    seen = tmp_path / "heat.png"
    flags = ["--device", "cpu", "--max-new-tokens", "2", "--image-file", picture, "--image-file", other]
    flags += ["--model-path", str(demo_model_path()), "--show-attribution", str(seen)]
    for how in ([], ["--each-image", "--no-qlip"]):
        assert cli.main([*flags, "--prompt", "Hi", "--prompt", "What is in the picture?", *how]) == 0
        shown = re.findall(r"/(heat\S*): (\d+) (\w+); the greatest share, (\d+)%, at row \d+", capsys.readouterr().err)
        assert [row[0] for row in shown] == ["heat.png", "heat-2.png"]
        assert {row[1:3] == ("64", "cells") for row in shown} == {bool(how)}
        assert all(0 < int(row[3]) <= 100 for row in shown)
        for source, drawn in ((picture, seen), (other, tmp_path / "heat-2.png")):
            with Image.open(source) as before, Image.open(drawn) as after:
                assert before.size == after.size and before.convert("RGB").tobytes() != after.tobytes()
            drawn.unlink()


def test_a_chat_draws_what_each_answer_depended_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", Mock(side_effect=["What is in the picture?", "Is there a ring?", EOFError]))
    seen = tmp_path / "heat.png"
    assert cli.main(["--device", "cpu", "--max-new-tokens", "2", "--show-attribution", str(seen)]) == 0
    assert capsys.readouterr().err.count(f"{seen}: ") == 2 and seen.is_file()


def test_an_answer_that_cannot_be_drawn_is_answered_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of memory, the attribution is tried again once without earlier prompts."""
    errors = [torch.OutOfMemoryError("CUDA out of memory"), OSError("No space left")]
    monkeypatch.setattr("builtins.input", Mock(side_effect=["What is in the picture?", "Is there a ring?", EOFError]))
    monkeypatch.setattr(explain, "attribute_answer", Mock(side_effect=[errors[0], *errors]))
    assert cli.main(["--device", "cpu", "--max-new-tokens", "4", "--show-attribution", str(tmp_path / "heat.png")]) == 0
    said = capsys.readouterr().err
    assert [said.count(f"llava: error: no attribution: {error}") for error in errors] == [1, 1]


@pytest.mark.parametrize("typed", [True, False], ids=["in a terminal", "from a pipe"])
def test_ctrl_c_ends_a_drawing_and_in_a_terminal_not_the_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: bool
) -> None:
    monkeypatch.setattr("builtins.input", Mock(side_effect=["What is in the picture?", "Is there a ring?", EOFError]))
    for module in (cli, drawings):
        monkeypatch.setattr(module, "is_terminal", lambda: typed)
    monkeypatch.setattr(explain, "attribute_answer", Mock(side_effect=KeyboardInterrupt))
    flags = ["--device", "cpu", "--max-new-tokens", "4", "--show-attribution", str(tmp_path / "heat.png")]
    assert cli.main(flags) == (0 if typed else 130)
    said = capsys.readouterr()
    assert said.err.count("llava: no attribution: stopped") == (2 if typed else 0)
