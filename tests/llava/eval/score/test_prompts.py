"""A scorer refuses answers to other questions, also where these have the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_cvbench, eval_mmbench, eval_pope, eval_realworldqa, eval_vstar
from tests.llava.eval.files import write_rows
from tests.llava.eval.scoring import COLOURS, SUFFIX
from tests.llava.eval.test_eval_mmbench import OPTIONS, row, table

WHERE = "Where?\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option and nothing else."
LABELLED = {
    "vstar": (eval_vstar.main, {"text": COLOURS, "label": "B", "category": "direct_attributes"}),
    "cvbench": (eval_cvbench.main, {"text": COLOURS, "answer": "(B)", "source": "COCO", "task": "Count"}),
    "realworldqa": (eval_realworldqa.main, {"text": COLOURS, "answer": "B"}),
}


def run_labelled(folder: Path, name: str, answer: dict[str, Any]) -> int:
    main, question = LABELLED[name]
    asked = write_rows(folder / "q.jsonl", [{"question_id": 0, **question}])
    answers = write_rows(folder / "a.jsonl", [{"question_id": 0, "text": "B", **answer}])
    return main(["--question-file", str(asked), "--result-file", str(answers)])


@pytest.mark.parametrize("name", LABELLED)
def test_answers_to_another_benchmark_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Their ids are the numbers of rows, which other benchmarks have too."""
    assert run_labelled(tmp_path, name, {"prompt": WHERE}) == 2
    error = capsys.readouterr().err
    assert "a.jsonl: the answer to '0' is to another question: its prompt is 'Where?\\nA. Left\\nB. Right" in error
    assert 'and the question is "What colour is it?\\n(A) red' in error
    assert "give the file of the answers to these questions" in error


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    "answer",
    [
        {"prompt": COLOURS},
        {"prompt": f"<image>\n{COLOURS}"},
        {"prompt": f"{COLOURS}\nThink first."},  # with an instruction
        {"prompt": COLOURS.replace("\n", " \r\n")},
        {"prompt": COLOURS.split("\n")[0]},  # without the options
        {"prompt": ""},
        {"prompt": None},
        {},
    ],
)
def test_a_prompt_may_add_to_its_question_or_be_absent(tmp_path: Path, name: str, answer: dict[str, Any]) -> None:
    assert run_labelled(tmp_path, name, answer) == 0


def test_by_likelihood_the_prompt_is_that_of_the_picture(tmp_path: Path) -> None:
    """V* Bench's annotations beside the pictures have their own wording."""
    answer = {"prompt": "Which colour does it have?", "metadata": {"protocol": "likelihood"}}
    assert run_labelled(tmp_path, "vstar", answer) == 0


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("Is there a dog in the image?" + SUFFIX, 0),
        ("Is there a dog in the imange?" + SUFFIX, 0),  # LLaVA's files spell it so
        ("<image>\nIs there a dog in the image?", 0),
        ("Is there a cat in the image?" + SUFFIX, 2),
    ],
)
def test_popes_answers_are_about_the_same_object(tmp_path: Path, prompt: str, code: int) -> None:
    asked = {"question_id": 1, "image": "i.jpg", "text": "Is there a dog in the image?"}
    write_rows(tmp_path / "coco_pope_random.json", [asked | {"label": "no"}])
    questions = write_rows(tmp_path / "q.jsonl", [asked | {"text": asked["text"] + SUFFIX, "category": "random"}])
    answers = write_rows(tmp_path / "a.jsonl", [{"question_id": 1, "prompt": prompt, "text": "No"}])
    flags = ["--annotation-dir", str(tmp_path), "--question-file", str(questions), "--result-file", str(answers)]
    assert eval_pope.main(flags) == code


@pytest.mark.parametrize(("prompt", "code"), [("Look.\nWhich?\nA. cat\nB. dog", 0), ("哪一个?\nA. 猫\nB. 狗", 2)])
def test_mmbenchs_chinese_and_english_answers_are_not_taken_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompt: str, code: int
) -> None:
    """Both tables have the same indices."""
    answers = write_rows(tmp_path / "a.jsonl", [row(index, "A") | {"prompt": prompt} for index in OPTIONS])
    flags = ["--annotation-file", str(table(tmp_path)), "--result-file", str(answers)]
    assert eval_mmbench.main(flags) == code
    assert ("is to another question" in capsys.readouterr().err) is bool(code)
