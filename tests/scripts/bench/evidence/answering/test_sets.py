"""Sets of pictures with questions: drawn by split, or read from a folder."""

from __future__ import annotations

import pytest

from playground.scenes import PRESETS, write_scenes
from scripts.bench.evidence.answering.answer_log import marks
from scripts.bench.evidence.answering.scene_sets import SPLITS
from scripts.bench.evidence.answering.sets import draw_set, read_set


def test_splits_differ_from_each_other_and_from_the_training_scenes():
    assert len({1, 2, 3, *SPLITS.values()}) == 3 + len(SPLITS)
    first = draw_set("base", "validation", 2)
    again = draw_set("base", "validation", 3)
    assert [p.tobytes() for p in first.pictures] == [p.tobytes() for p in again.pictures[:2]]
    assert first.questions[0] == again.questions[0]
    assert draw_set("base", "test", 1).pictures[0].tobytes() != first.pictures[0].tobytes()


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="'huge'.*base.*validation"):
        draw_set("huge", "validation")


def test_a_folder_of_questions_reads_as_a_set(tmp_path):
    write_scenes(tmp_path, PRESETS["base"], 5, 2)
    questions = read_set(tmp_path)
    assert len(questions.pictures) == 2
    assert [len(row) for row in questions.questions] == [9, 9]
    found = marks(questions, [[True] * 9, [False] * 9])
    assert found["right"]["colour"] == "1100"
    assert found["pictures"]["colour"] == [0, 0, 1, 1]
