"""`qlip show`: its output and its errors; the errors of all commands of `qlip`."""

from __future__ import annotations

import pickle
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from qlip.cli import main


def raising(error: BaseException):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.fixture
def picture(tmp_path):
    """A flat ground with one small noisy square."""
    pixels = np.full((224, 336, 3), 90, np.uint8)
    pixels[30:40, 200:210] = np.random.default_rng(0).integers(0, 255, (10, 10, 3))
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_show_prints_the_tree_and_writes_the_overlay(picture, tmp_path, capsys):
    out = tmp_path / "overlay.png"
    assert main(["show", str(picture), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grid     16 x 24 cells of 14 px"
    counts = {int(words[3]): int(words[1]) for words in map(str.split, lines) if words[0] == "leaves"}
    assert sum(count * size**2 for size, count in counts.items()) == 16 * 24
    assert f"{sum(counts.values()):6d}, against 384" in lines[-3]  # before a note and the overlay
    assert Image.open(out).size == (24 * 14 + 1, 16 * 14 + 1)


def test_flags_reach_the_quadtree(picture, tmp_path, capsys):
    flags = [
        "--out",
        str(tmp_path / "o.png"),
        "--alpha",
        "0",
        "--max-tokens",
        "none",
        "--image-size",
        "112",
        "--geometry",
        "grid",
    ]
    assert main(["show", str(picture), *flags]) == 0
    assert "    96, against 96 of the uniform grid (100.0%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--alpha", "-1"], "alpha is -1.0"), (["--max-tokens", "0"], "max_tokens is 0")],
)
def test_bad_values_are_refused_in_one_line(picture, capsys, flags, message):
    assert main(["show", str(picture), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_no_picture_is_refused(tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    assert main(["show", str(tmp_path / "text.png")]) == 2
    assert main(["show", str(tmp_path / "absent.png")]) == 2
    error = capsys.readouterr().err
    assert "text.png: not a readable image" in error and "there is no file" in error
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    assert main(["show", str(tmp_path / "large.png")]) == 2
    error = capsys.readouterr().err
    assert "large.png: the image is 20000x10000 pixels; at most 180,000,000 pixels are allowed" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "qlip: error: the following arguments are required: COMMAND"),
        (["fit"], "qlip fit: error: the following arguments are required: --tower, --out"),
        (["fit", "--recipe", "theirs"], "qlip fit: error: argument --recipe: invalid choice: 'theirs'"),
        (["show", "a.png", "--max-tokens", "96.5"], "qlip show: error: argument --max-tokens: '96.5' is not allowed"),
        (["sweep", "--nothing"], "qlip sweep: error: "),
    ],
)
def test_a_wrong_flag_is_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(message) and error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), RuntimeError("a\nb"), SafetensorError("a\nb"), pickle.UnpicklingError("a\nb")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["show", "a.png"], "qlip.tools.show.ImageCutter"),
        (["bias", "--tower", "t", "--images", "i", "--out", "o.json"], "qlip.tools.bias_report.find_pictures"),
        (["fit", "--tower", "t", "--out", "o.safetensors"], "qlip.prior.train.fit_prior"),
    ],
    ids=["show", "bias", "fit"],
)
def test_an_error_of_the_user_is_one_line_in_every_command(capsys, monkeypatch, flags, name, error):
    monkeypatch.setattr(name, raising(error))
    assert main(flags) == 2
    assert capsys.readouterr().err == "qlip: error: a b\n"


@pytest.mark.parametrize("flag", ["--epochs 3", "--random-start", "--mixed-precision bf16", "--alpha 0 1", "--resume"])
def test_flags_of_training_on_images_need_images(capsys, flag):
    assert main(["fit", "--tower", "t", "--out", "o.safetensors", *flag.split()]) == 2
    name = flag.split()[0]
    assert capsys.readouterr().err.startswith(f"qlip: error: {name} is for training on images; give their folder")


def test_a_fault_of_the_program_keeps_its_traceback_and_ctrl_c_says_nothing(capsys, monkeypatch):
    flags = ["bias", "--tower", "t", "--images", "i", "--out", "o.json"]
    monkeypatch.setattr("qlip.tools.bias_report.find_pictures", raising(AssertionError("a fault")))
    with pytest.raises(AssertionError, match="a fault"):
        main(flags)
    monkeypatch.setattr("qlip.tools.bias_report.find_pictures", raising(KeyboardInterrupt()))
    assert main(flags) == 130
    assert capsys.readouterr().err == ""


def test_the_module_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qlip", "show", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("qlip", run_name="__main__")
    assert done.value.code == 0 and "--criterion" in capsys.readouterr().out
