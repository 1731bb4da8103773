"""`qlip show`: tokens beside CLIP's, settings without effect, several images, folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from qlip.cli import main
from qlip.tools.draw import CAPTION, GAP, draw_sheet

DEMO = Path(__file__).parents[3] / "playground" / "pictures"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, one in a folder below; a working folder beside them."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    (tmp_path / "images" / "below").mkdir(parents=True)
    Image.new("RGB", (112, 168)).save(tmp_path / "images" / "flat.png")
    Image.fromarray(noise).save(tmp_path / "images" / "below" / "noise.png")
    return tmp_path / "images"


def show(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    """The lines on stdout, or on stderr if the command fails."""
    assert main(["show", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return (captured.err if code else captured.out).splitlines()


def test_tokens_are_compared_with_clip_and_the_uniform_grid(tmp_path, capsys):
    picture = DEMO / "1-small-shapes.png"
    lines = show(capsys, picture, "--native-size", 112, "--out", tmp_path / "o.png")
    tokens = "    85, against 1024 of the uniform grid (8.3%) and 64 of CLIP at 112 px (132.8%)"
    assert lines[-2:] == [f"tokens   {tokens}", f"overlay  {tmp_path / 'o.png'}"]


def test_the_readme_s_picture_has_the_tokens_that_the_readme_says(tmp_path, capsys):
    """By the command that the README gives; `scripts.leaves_picture` counts in another way."""
    Image.fromarray(skimage.data.rocket()).save(tmp_path / "rocket.png")
    flags = ("--max-tokens", 288, "--alpha", 0, "--coarsest", "any", "--geometry", "native")
    (line,) = [row for row in show(capsys, tmp_path / "rocket.png", *flags) if row.startswith("tokens")]
    count, uniform, clip = re.match(r"tokens +(\d+), against (\d+) of .* and (\d+) of CLIP", line).groups()
    readme = " ".join((DEMO.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"{clip} equal pieces" in readme
    assert re.search(rf"here 6\d, 144, {count} and 576 tokens, against {uniform} of the uniform grid", readme)


def test_json_has_a_line_for_each_image_and_nothing_else(folder, capsys):
    """The numbers are those of the text; leaves of each size fill the grid."""
    images = [DEMO / "1-small-shapes.png", DEMO / "3-large-shapes.png"]
    assert main(["show", *map(str, images), "--native-size", "112", "--json", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in rows] == [str(image) for image in images]
    assert [row["tokens"] for row in rows] == [
        int(line.split()[0]) for line in show(capsys, *images, "--native-size", 112)[1:3]
    ]
    for row in rows:
        assert row["tokens"] == sum(row["leaves"].values())
        assert row["uniform_tokens"] == row["grid"][0] * row["grid"][1] == 1024
        assert row["uniform_tokens"] == sum(int(side) ** 2 * count for side, count in row["leaves"].items())
        assert row["clip_tokens"] == 64
    assert "--seed 3 has no effect" in printed.err and "overlay" in printed.err
    assert main(["show", str(images[0]), "--native-size", "112", "--json", "--out", "o.png"]) == 0
    assert json.loads(capsys.readouterr().out) == rows[0]


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        ("--alpha 0.8", []),
        ("--alpha 0", []),
        (
            "--max-tokens none",
            ["--max-tokens none has no effect on this image: the default, 1152, gives the same leaves"],
        ),
        ("--seed 3", ["--seed 3 has no effect: it belongs to --criterion random, not objects"]),
        (
            "--criterion variance --no-noise-floor --structure-size 9",
            [
                "--no-noise-floor has no effect: it belongs to --criterion objects or structure, not variance",
                "--structure-size 9 has no effect: it belongs to --criterion objects or structure, not variance",
            ],
        ),
        ("--criterion random --seed 3 --max-tokens 100", []),
        (
            "--image-size 448",
            ["--image-size 448 has no effect on this image: the default, none, gives the same leaves"],
        ),
        ("--no-noise-floor", ["--no-noise-floor has no effect on this image"]),
        (
            "--max-tokens 66",  # CLIP's 8 x 8 cells; one of them split would be 67
            ["--max-tokens 66 is spent on the coarsest leaves, and none is split; give some more"],
        ),
        ("--max-tokens 67", []),
    ],
)
def test_a_setting_that_changes_no_leaf_and_a_spent_budget_are_named(folder, capsys, flags, notes):
    lines = show(capsys, DEMO / "4-textured-ground.png", "--native-size", 112, "--out", "o.png", *flags.split())
    assert [line for line in lines if line.startswith("note")] == [f"note     {note}" for note in notes]


@pytest.mark.parametrize("native_size", [224, 225, 336])
def test_a_native_size_above_half_the_image_leaves_no_quadtree_and_that_is_said(folder, capsys, native_size):
    """The picture has 448 px; 225 px are 16 whole cells, as 224 are."""
    lines = show(
        capsys, DEMO / "1-small-shapes.png", "--native-size", native_size, "--geometry", "grid", "--out", "o.png"
    )
    only_cells = [line.split()[3] for line in lines if line.startswith("leaves")] == ["1"]
    assert only_cells == (native_size == 336) == any("no leaf may be larger than one cell" in line for line in lines)


def test_the_image_size_that_the_hint_of_native_geometry_asks_for_gives_a_quadtree(folder, capsys):
    """The picture has 448 x 448 px, so 449 exceeds a native size of 448."""
    flags = [DEMO / "1-small-shapes.png", "--native-size", 448, "--out", "o.png"]
    hint = [line for line in show(capsys, *flags, "--image-size", 448) if "no leaf may be larger than one cell" in line]
    assert len(hint) == 1 and "give the tower's own --native-size, an --image-size at which the longer side" in hint[0]
    assert not any("no leaf may" in line for line in show(capsys, *flags, "--image-size", 449))


def test_files_and_folders_get_a_line_each_and_a_contact_sheet(folder, capsys):
    flat, noise = folder / "flat.png", folder / "below" / "noise.png"
    for images in ([folder], [noise, flat]):
        printed = show(capsys, *images, "--native-size", 112, "--geometry", "grid", "--alpha", 0)
        head, *lines, mean, overlay = [line for line in printed if not line.startswith("note")]
        assert head.split() == ["tokens", "CLIP", "uniform", "image"]
        assert [line.split() for line in lines] == [
            ["64", "64", "64", str(noise)],
            ["96", "64", "96", str(flat)],
        ]  # at threshold 0 every cell is a leaf
        assert mean.split() == ["80.0", "64.0", "80.0", "mean", "of", "2"]
        assert overlay == "overlay  sheet.leaves.png"
        assert Image.open("sheet.leaves.png").size == (2 * (320 + GAP) + GAP, 320 + CAPTION + 2 * GAP)


def test_a_sheet_has_a_bound_and_the_mean_is_of_all(folder, capsys, monkeypatch):
    whole = show(capsys, folder)
    monkeypatch.setattr("qlip.tools.show.MOST_TILES", 1)
    lines = show(capsys, folder)
    note = "note     the sheet shows the first 1 images"
    assert note in lines and note not in whole
    assert [line for line in lines if "mean of" in line] == [line for line in whole if "mean of" in line]


def test_a_name_with_a_line_break_keeps_its_line_and_the_sheet(folder, capsys):
    (folder / "flat.png").rename(folder / "fl\nat.png")
    lines = show(capsys, folder, "--native-size", 112)
    assert any(line.endswith(f"{folder}/fl\\nat.png") for line in lines)
    assert lines[-1] == "overlay  sheet.leaves.png"


def test_a_note_about_several_images_is_true_of_all(folder, capsys):
    lines = show(capsys, folder, "--alpha", 0, "--max-tokens", 80, "--seed", 1, "--image-size", 112)
    notes = [line for line in lines if line.startswith("note")]
    assert [note.split()[1] for note in notes] == ["--image-size", "--seed"]  # 80 is a bound on one of them only


def test_the_drawing_of_a_large_image_has_a_bounded_size(capsys, tmp_path):
    Image.new("L", (8000, 500)).save(tmp_path / "wide.png")
    show(capsys, tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.leaves.png") as drawing:
        assert 3500 < drawing.width <= 4097


def test_a_folder_s_drawings_and_damaged_files_are_left_out(folder, capsys, caplog):
    show(capsys, folder / "flat.png")
    assert (folder / "flat.leaves.png").is_file()
    (folder / "damaged.png").write_text("no image")
    assert any(line.endswith("mean of 2") for line in show(capsys, folder))
    assert "damaged.png: not a readable image" in caplog.text
    (line,) = show(capsys, folder / "flat.png", folder / "damaged.png", code=2)
    assert "damaged.png: not a readable image" in line


def test_a_sheet_is_not_written_over_an_image_and_an_empty_folder_is_an_error(folder, capsys, tmp_path):
    flat = folder / "flat.png"
    (line,) = show(capsys, folder, "--out", flat, code=2)
    assert line == f"qlip: error: --out {flat} is one of the files that are read; name another file to write"
    (line,) = show(capsys, tmp_path / "work", code=2)
    assert line == f"qlip: error: there are no images in {tmp_path / 'work'}"


def test_a_long_name_is_cut_at_its_start():
    """The text of a tile stays in its column: the gap and the border right of it are white."""
    sheet = np.asarray(draw_sheet([("long name " * 20 + ": 91 tokens", Image.new("RGB", (50, 50)))], 100))
    assert (sheet[:, GAP + 101 :] == 255).all()
    assert (sheet[GAP + 50 : GAP + 50 + CAPTION] < 128).any()


@pytest.mark.parametrize("name", ["o", "o.xyz"])
def test_a_drawing_needs_the_ending_of_an_image(name, capsys, tmp_path):
    (line,) = show(capsys, DEMO / "1-small-shapes.png", "--out", tmp_path / name, code=2)
    assert line == f"qlip: error: --out {tmp_path / name}: use the ending of an image format, for example .png"
