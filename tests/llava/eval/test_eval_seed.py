"""SEED-Bench on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import eval_seed
from tests.llava.eval.files import write_answers
from tests.llava.eval.scoring import rows_of, seed_files


def test_seed_bench_by_hand(tmp_path: Path) -> None:
    """ "a" is right, "Four." is D's text and right, "B or C" is unparsed: 2 of 3; images 2 of 2, videos 0 of 1."""
    flags = seed_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"v3": "B or C", "1_0": "a", "2": "Four."})
    one, none = {"accuracy": 100.0, "questions": 1}, {"accuracy": 0.0, "questions": 1}
    assert rows_of(tmp_path, eval_seed.main, *flags) == {
        "all": {"accuracy": pytest.approx(200 / 3), "questions": 3, "unparsed": 1},
        "image": {"accuracy": 100.0, "questions": 2},
        "video": none,
        "Scene Understanding": one,
        "Instance Identity": one,
        "Action Recognition": none,
    }


@pytest.mark.parametrize("label", ["a", "(A)", " A", "A."])
def test_seed_benchs_labels_are_read_in_any_form(tmp_path: Path, label: str) -> None:
    flags = relabel(seed_files(tmp_path), answer=label)
    write_answers(tmp_path / "a.jsonl", {"v3": "A", "1_0": "A", "2": "A"})
    assert rows_of(tmp_path, eval_seed.main, *flags)["all"]["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answer": 0}, "answer is '0'; it must be an option's letter"),
        ({"answer": "E"}, "answer is 'E'; it must be an option's letter, one of A, B, C, D"),
        ({"question_type_id": []}, "question_type does not name the type []"),
    ],
)
def test_what_seed_benchs_labels_can_not_be_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict, words: str
) -> None:
    flags = relabel(seed_files(tmp_path), **fields)
    answers = write_answers(tmp_path / "a.jsonl", {"v3": "A", "1_0": "A", "2": "A"})
    assert eval_seed.main([*flags, "--result-file", str(answers)]) == 2
    assert words in capsys.readouterr().err


def relabel(flags: list[str], **fields: object) -> list[str]:
    """Changes fields of all questions; returns the flags."""
    path = Path(flags[flags.index("--annotation-file") + 1])
    content = json.loads(path.read_text())
    content["questions"] = [{**row, **fields} for row in content["questions"]]
    path.write_text(json.dumps(content))
    return flags


def test_seed_benchs_images_need_no_answers_about_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = seed_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1_0": "A", "2": "B"})
    assert rows_of(tmp_path, eval_seed.main, *flags, "--only", "image")["all"]["accuracy"] == 50.0
    assert eval_seed.main([*flags, "--result-file", str(tmp_path / "a.jsonl")]) == 2
    assert "lacks the answers to 1 of 3 questions, for example 'v3'" in capsys.readouterr().err
