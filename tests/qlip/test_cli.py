"""`python -m qlip show`: what it prints and writes, and how it refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qlip import Leaves, draw_leaves
from qlip.cli import main


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
    assert f"{sum(counts.values()):6d}, against 384" in lines[-2]
    assert Image.open(out).size == (24 * 14 + 1, 16 * 14 + 1)


def test_flags_reach_the_quadtree(picture, tmp_path, capsys):
    flags = ["--out", str(tmp_path / "o.png"), "--alpha", "0", "--max-tokens", "none", "--image-size", "112"]
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
    assert "no picture" in (error := capsys.readouterr().err) and "there is no file" in error


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "qlip", "show", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "--criterion" in result.stdout


def test_every_border_of_every_leaf_is_drawn():
    leaves = Leaves.uniform((2, 3))
    drawing = np.asarray(draw_leaves(Image.new("RGB", (42, 28), (10, 10, 10)), leaves, colour=(255, 0, 0)))
    for line in (0, 14, 28):
        assert (drawing[line] == (255, 0, 0)).all()
    for line in (0, 14, 28, 42):
        assert (drawing[:, line] == (255, 0, 0)).all()
