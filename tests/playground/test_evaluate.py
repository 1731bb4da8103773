"""The evaluation: asks every kind, compares the ways of seeing, and judges by the whole answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from playground.dialogue import DIALOGUE_KINDS
from playground.evaluate import compare, main, shipped_settings
from playground.examination import Examinee, Score, examination
from playground.model import save_checkpoint
from playground.presets import NAMED_PRESETS, PRESETS
from playground.questions import KINDS
from playground.schedules import shipped_path
from qlip import QLIPConfig


@pytest.fixture
def checkpoint(model, vocabulary, tmp_path):
    """A model with random weights, in a folder of its own."""
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, vocabulary, folder, qlip={"alpha": 0.5, "max_tokens": 80})
    return str(folder)


def test_an_examination_asks_one_question_of_each_kind_and_starts_alike_at_any_length():
    short, long = (examination(PRESETS["base"], 5, count) for count in (2, 3))
    assert [[item.kind for item in row] for row in short.questions] == [list(KINDS)] * 2
    assert short.questions == long.questions[:2]


def test_answers_that_agree_with_the_scene_count(checkpoint, monkeypatch):
    exam = examination(PRESETS["base"], 5, 3)
    known = {item.text: item.answer for row in exam.questions for item in row if item.kind in ("colour", "listing")}
    examinee = Examinee.load(checkpoint, False, "cpu")
    monkeypatch.setattr(examinee, "answer", lambda texts, pixels: [known.get(text, "?") for text in texts])
    score = examinee.take(exam)
    assert score.accuracy == {kind: float(kind in ("colour", "listing")) for kind in KINDS}
    assert score.tokens == 64


def test_v_star_is_the_mean_of_colour_shape_and_relation():
    score = Score({"colour": 1.0, "shape": 0.5, "relation": 0.0, "count": 0.9}, 64)
    assert score.v_star == pytest.approx(0.5)


def test_methods_see_with_the_promised_numbers_of_tokens(checkpoint):
    exam = examination(PRESETS["detail"], 5, 1)
    exam = replace(exam, questions=[exam.questions[0][:1]])
    scores = compare(checkpoint, exam, ["random", "clip", "qlip"], QLIPConfig(alpha=0.0, max_tokens=70), "cpu")
    assert list(scores) == ["clip", "qlip", "random"]
    assert scores["clip"].tokens == 64
    assert 64 < scores["qlip"].tokens <= 70
    assert scores["random"].tokens == scores["qlip"].tokens


def test_random_needs_the_number_of_tokens_to_match(checkpoint):
    with pytest.raises(ValueError, match="evaluate both"):
        compare(checkpoint, examination(PRESETS["base"], 5, 1), ["random"], QLIPConfig(), "cpu")


def test_settings_are_the_checkpoints_with_changes_laid_over(checkpoint):
    settings = shipped_settings(checkpoint, {"max_tokens": 90})
    assert (settings.alpha, settings.max_tokens) == (0.5, 90)


def test_the_command_prints_a_row_for_each_method(capsys):
    assert main([
        "--model-path", str(shipped_path("joint")), "--n", "1", "--presets", "base", "--methods", "clip", "qlip",
        "--qlip", json.dumps({"max_tokens": 64}), "--device", "cpu",
    ]) == 0  # fmt: skip
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-len(KINDS) :] == list(KINDS)
    assert [row.split()[:2] for row in rows] == [["base", "clip"], ["base", "qlip"]]


def test_an_examination_of_signs_asks_to_read_them_and_lists_them():
    exam = examination(NAMED_PRESETS["validation/native signs"], 5, 3)
    assert exam.kinds == list(DIALOGUE_KINDS)
    for made, row in zip(exam.scenes, exam.questions, strict=True):
        answers = {item.kind: item.answer for item in row}
        assert answers["sign"] == made.sign.text
        assert f"a sign that says {made.sign.text}" in answers["listing"]
        assert answers["count"] == str(len(made.objects))


def test_an_examination_without_clear_answers_has_them(monkeypatch):
    exam = examination(NAMED_PRESETS["validation/native unclear"], 5, 60)
    answers = {item.answer for row in exam.questions for item in row}
    assert {"none", "I can't tell"} <= answers


def test_a_second_question_follows_the_first_and_its_answer(checkpoint, monkeypatch):
    exam = examination(PRESETS["base"], 5, 2)
    examinee = Examinee.load(checkpoint, False, "cpu")
    asked = []

    def answer(engine, prompts, images, sampling):
        asked.extend(engine.tokenizer.decode(ids[ids >= 0]) for ids in prompts)
        return ["YES"] * len(prompts)

    monkeypatch.setattr("playground.examination.generate", answer)
    monkeypatch.setattr("llava.eval.run.answerer.generate", lambda engine, prompts, *rest: ["a dog"] * len(prompts))
    answers = examinee.answer_all(exam, first="What is in the picture?")
    assert answers == [["yes"] * len(KINDS)] * 2
    texts = [item.text for column in zip(*exam.questions, strict=True) for item in column]
    for prompt, text in zip(asked, texts, strict=True):
        assert prompt.endswith(f"What is in the picture? ASSISTANT: a dog</s>USER: {text} ASSISTANT:")
