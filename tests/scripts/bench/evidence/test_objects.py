"""The tables and the picture of criterion "objects" beside "structure": filled from answers, or refused."""

from __future__ import annotations

import pytest
from PIL import Image

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import objects
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

SETS = EXPERIMENTS["objects"].sets
COMPARED, KEPT = ("CLIP", objects.BEFORE, objects.CHOSEN), "objects 7, split cells kept"
RIGHT = {"CLIP": "0000", objects.BEFORE: "1000", objects.CHOSEN: "1110", KEPT: "1100"}


@pytest.fixture
def page(tmp_path):
    marks = ("objects: validation", "objects: validation, candidates", "objects: validation, attention")
    (tmp_path / "page.md").write_text("".join(f"<!-- {mark} -->\n<!-- end {mark} -->\n" for mark in marks))
    return tmp_path / "page.md"


def answer(folder, ways, sets=SETS) -> None:
    """Keeps answers of four pictures to all kinds of questions; one set has signs, too."""
    own, log = read_own_settings(demo_model_path()), AnswerLog(folder / "answers.jsonl")
    for way in EXPERIMENTS["objects"].ways:
        for name in sets if way.name in ways else ():
            kinds = (*KINDS, "sign") if name == "mixed/native signs" else KINDS
            row = {"model": "one", "split": "validation", "set": name, "scenes": 4, "way": way.key(own)}
            row |= {"right": dict.fromkeys(kinds, RIGHT[way.name]), "pictures": dict.fromkeys(kinds, [0, 1, 2, 3])}
            log.add(row | {"tokens": [64, 66, 68, 70], "seconds": 0.0})


def fill(page, *flags) -> int:
    return objects.main(["--answers-files", str(page.parent / "answers.jsonl"), "--page", str(page), *flags])


def test_each_set_and_each_way_have_their_row(page):
    answer(page.parent, COMPARED)
    assert fill(page) == fill(page, "--table", "candidates") == 0
    lines = page.read_text().splitlines()
    shown = "0.0 / 25.0 / 75.0"
    assert f"| mean |  | {shown} | {shown} | {shown} | {shown} | **50.0** | 50.0 |" in lines
    assert f"| {objects.BEFORE} | 67.0 | 25.0 | 25.0 | 25.0 | 25.0 |  |  |" in lines
    (row,) = (line for line in lines if line.startswith(f"| {objects.CHOSEN} |"))
    assert row.startswith(f"| {objects.CHOSEN} | 67.0 | 75.0 | 75.0 | 75.0 | 75.0 | **50.0** [")
    assert row.endswith("| 50.0 |")
    assert not any(line.startswith("| objects 5") for line in lines)  # was not asked


def test_what_attention_can_do_besides_is_compared_with_the_chosen_settings(page):
    answer(page.parent, RIGHT)
    assert fill(page, "--table", "attention") == 0
    chosen, other = (line for line in page.read_text().splitlines() if line.startswith("| objects"))
    assert chosen == f"| {objects.CHOSEN} | 67.0 | 75.0 | 75.0 | 75.0 | 75.0 |  |  |"
    assert other.startswith(f"| {KEPT} | 67.0 | 50.0 | 50.0 | 50.0 | 50.0 | **-25.0** [")


def test_what_was_not_asked_is_named(page, capsys):
    answer(page.parent, COMPARED, SETS[1:])
    assert fill(page) == fill(page, "--table", "candidates") == 2
    assert "there are no answers to 1 of the sets by 'CLIP'" in capsys.readouterr().err


def test_the_picture_has_two_rows_of_scenes(tmp_path):
    assert objects.main(["--drawing", str(tmp_path / "scenes.png")]) == 0
    with Image.open(tmp_path / "scenes.png") as drawn:
        assert drawn.size == (6 * 226 - 6, 446)
        above, below = (drawn.crop((0, top, 220, top + 220)) for top in (0, 226))
    assert above.tobytes() != below.tobytes()
