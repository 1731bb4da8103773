"""CV-Bench on hand-made answers, scored by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval import eval_cvbench
from tests.llava.eval.scoring import cv, labelled


def test_cvbench_by_hand(tmp_path: Path) -> None:
    """ADE20K 3 of 4, COCO 0 of 1, Omni3D 1 of 1: 2D is their mean, 37.5, though 3 of 5 questions are right; 3D is 100,
    the score the mean of the two, 68.75. "3" is option B's text."""
    rows = labelled(
        tmp_path,
        eval_cvbench.main,
        [
            (cv("ADE20K", "Count", "(B)"), "3"),
            (cv("ADE20K", "Count", "(A)"), "(A) 0"),
            (cv("ADE20K", "Relation", "(A)"), "A"),
            (cv("ADE20K", "Relation", "(A)"), "B"),
            (cv("COCO", "Count", "(A)"), "neither"),
            (cv("Omni3D", "Depth", "(B)"), "b"),
        ],
    )
    measured = {name: row["accuracy"] for name, row in rows.items()}
    assert {name: measured[name] for name in ("overall", "2D", "3D")} == {"overall": 68.75, "2D": 37.5, "3D": 100.0}
    assert [measured[name] for name in ("ADE20K", "COCO", "Omni3D")] == [75.0, 0.0, 100.0]
    assert [measured[name] for name in ("Count", "Relation", "Depth")] == [pytest.approx(200 / 3), 50.0, 100.0]
    assert rows["all questions"] == {"accuracy": pytest.approx(400 / 6), "questions": 6, "unparsed": 1}


def test_a_part_of_cvbench_has_no_overall_score(tmp_path: Path) -> None:
    rows = labelled(
        tmp_path, eval_cvbench.main, [(cv("Omni3D", "Depth", "(B)"), "B"), (cv("COCO", "Count", "(A)"), "A")]
    )
    assert "3D" in rows and not {"2D", "overall"} & set(rows)
