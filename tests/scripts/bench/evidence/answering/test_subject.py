"""The measurements of docs/RESULTS.md: what is seen and asked, resuming, and what tables say."""

from __future__ import annotations

import json

import pytest
import torch

from llava.serve.engine import ChatEngine
from playground.model import sincos_2d
from playground.scenes import PRESETS, write_scenes
from qlip import Leaves, QLIPConfig, interpolate_positions
from scripts.bench.evidence.answering.answer_log import AnswerLog, marks
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.answering.scene_sets import KINDS, SPLITS
from scripts.bench.evidence.answering.sets import draw_set, read_set
from scripts.bench.evidence.answering.subject import interpolate_scrambled
from scripts.bench.evidence.answering.variants import Way
from scripts.bench.evidence.pages.fill import fill
from scripts.bench.evidence.pages.tables import kind_table, size_table, table


def test_the_scrambled_reshape_is_exact_at_the_native_grid_and_wrong_elsewhere():
    table = sincos_2d(24, 48)
    torch.testing.assert_close(interpolate_scrambled(table, Leaves.uniform((24, 24))), table)
    larger = Leaves.uniform((33, 33))
    right = interpolate_positions(table, larger)
    assert (interpolate_scrambled(table, larger) - right).norm() / right.norm() > 1


def test_every_way_has_valid_settings_and_a_name_of_its_own():
    for experiment in EXPERIMENTS.values():
        names = [way.name for way in experiment.ways]
        assert len(set(names)) == len(names)
        keys = [json.dumps(way.key(QLIPConfig(coarsest="native")), sort_keys=True) for way in experiment.ways]
        assert len(keys) == len(experiment.ways)


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


@pytest.mark.parametrize("way", [CLIP, SHIPPED, Way("small", {"image_size": 112})], ids=lambda way: way.name)
def test_examining_judges_what_a_chat_would_answer(subject, way):
    questions = draw_set("12-24 px", "validation", 3)
    found = subject.examine(way, questions)
    engine = subject.engine_of(way)
    if way.settings is not None:
        engine.model.get_vision_tower().settings = subject.settings(way)
    for picture, asked, judged in zip(questions.pictures, questions.questions, found.right, strict=True):
        said = [engine.ask(item.text, [picture]).lower() for item in asked]
        assert [text == item.answer for text, item in zip(said, asked, strict=True)] == judged
    assert isinstance(engine, ChatEngine)
    assert found.tokens == [64] * 3 if way is not SHIPPED else all(64 <= count <= 128 for count in found.tokens)


@pytest.mark.parametrize("rival", ["cls", "cls+merge", "tome"])
def test_rivals_see_as_many_tokens_as_they_are_allowed(subject, rival):
    questions = draw_set("12-24 px", "validation", 1)
    (seen,) = subject.see(Way(rival, {"max_tokens": 70}, rival), questions.pictures)
    assert len(seen.tokens.features) == len(seen.tokens.span.positions) == 70
    assert seen.tokens.span.length == 64


def test_a_prior_that_is_not_given_is_named(subject):
    with pytest.raises(ValueError, match="'mlp'.*grid"):
        subject.see(Way("mlp", {}, prior="grid"), [])


def test_a_folder_of_questions_reads_as_a_set(tmp_path):
    write_scenes(tmp_path, PRESETS["base"], 5, 2)
    questions = read_set(tmp_path)
    assert len(questions.pictures) == 2
    assert [len(row) for row in questions.questions] == [9, 9]
    found = marks(questions, [[True] * 9, [False] * 9])
    assert found["right"]["colour"] == "1100"
    assert found["pictures"]["colour"] == [0, 0, 1, 1]


def journal_row(way: Way, model: str, right: dict[str, str], name: str = "base", tokens: int = 64) -> dict:
    count = len(right["colour"])
    pictures = {kind: list(range(count)) for kind in right}
    return {
        "model": model, "split": "test", "set": name, "scenes": count, "way": way.key(QLIPConfig()),
        "right": right, "pictures": pictures, "tokens": [tokens] * count, "flops": [2_500_000_000] * count,
        "seconds": 0.0,
    }  # fmt: skip


def test_a_half_written_line_is_dropped_and_the_log_continues(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = journal_row(CLIP, "a", dict.fromkeys(KINDS, "10"))
    AnswerLog(path).add(first)
    with path.open("a") as file:
        file.write('{"model": "b", ')
    log = AnswerLog(path)
    assert log.has(first)
    assert not log.has({**first, "model": "b"})
    log.add({**first, "model": "b"})
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_table_pools_checkpoints_and_says_what_was_not_measured(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.add(journal_row(CLIP, "a", dict.fromkeys(KINDS, "1100")))
    log.add(journal_row(CLIP, "b", dict.fromkeys(KINDS, "1111")))
    text = table(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED], "base")
    assert "| CLIP | 64.0 | 2.5 | **75.0** [50.0, 100.0] | 50.0 / 100.0 |" in text
    assert "| QLIP as shipped | not measured |" in text


def test_ways_are_compared_on_the_checkpoints_that_were_asked_in_all_of_them(tmp_path):
    path = tmp_path / "answers.jsonl"
    log, other = AnswerLog(path), Way("random", {"criterion": "random"})
    log.add(journal_row(CLIP, "a", dict.fromkeys(KINDS, "1100")))
    log.add(journal_row(CLIP, "b", dict.fromkeys(KINDS, "1111")))
    log.add(journal_row(SHIPPED, "a", dict.fromkeys(KINDS, "1110")))
    answers = Answers([path], "test", QLIPConfig())
    text = table(answers, [CLIP, SHIPPED, other], "base")
    assert "| CLIP | 64.0 | 2.5 | **50.0**" in text and "| QLIP as shipped | 64.0 | 2.5 | **75.0**" in text
    assert "by checkpoint" not in text and "| random | not measured |" in text
    log.add(journal_row(other, "b", dict.fromkeys(KINDS, "1111")))
    with pytest.raises(ValueError, match="no checkpoint was asked in all ways that were asked about base"):
        table(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED, other], "base")


def test_tables_by_size_and_kind_show_tokens_and_operations(tmp_path):
    path = tmp_path / "answers.jsonl"
    right = {kind: "10" if kind == "count" else "11" for kind in KINDS}
    AnswerLog(path).add(journal_row(SHIPPED, "a", right, tokens=91))
    old = journal_row(CLIP, "a", right)
    del old["flops"]  # as in files of answers from before they were counted
    AnswerLog(path).add(old)
    answers = Answers([path], "test", QLIPConfig())
    text = size_table(answers, [CLIP, SHIPPED], ["base", "large"], ("count", "existence"))
    assert "| QLIP as shipped | 2.5 | 75.0 (91) | not measured |" in text
    assert "| CLIP | not counted | 75.0 (64) | not measured |" in text
    by_kind = kind_table(answers, [CLIP, SHIPPED], "base")
    assert "| colour | shape | relation | count | existence |" in by_kind
    assert "| QLIP as shipped | 91.0 | 2.5 | 100.0 | 100.0 | 100.0 | 50.0 | 100.0 |" in by_kind


def test_ways_at_equal_cost_cost_the_same(subject):
    """Within a twelfth of the quadtree; CLIP and PruMerge, whose number of tokens is its own, cost less."""
    questions = draw_set("12-24 px", "validation", 1)
    equal = {way.name: subject.examine(way, questions).flops[0] for way in EXPERIMENTS["equal-flops"].ways}
    quadtree = equal["quadtree"]
    assert all(abs(cost / quadtree - 1) < 1 / 12 for name, cost in equal.items() if name[:4] not in ("CLIP", "PruM"))
    assert max(equal.values()) < quadtree * 13 / 12
    asked, *dear = [subject.examine(way, questions).flops[0] for way in EXPERIMENTS["dear-rivals"].ways]
    assert abs(dear.pop(0) / asked - 1) < 1 / 8  # by the question, so only about
    for rival, ours in zip(dear[::2], dear[1::2], strict=True):
        assert abs(ours / rival - 1) < 1 / 50


def test_marks_are_filled_again_and_again():
    text = "before\n<!-- a: b -->\n<!-- end a: b -->\nafter\n"
    once = fill(text, {"a: b": "| 1 |"})
    assert once == "before\n<!-- a: b -->\n| 1 |\n<!-- end a: b -->\nafter\n"
    assert fill(once, {"a: b": "| 2 |"}) == once.replace("1", "2")
    with pytest.raises(ValueError, match="'a: b'.*c"):
        fill(text, {"c": ""})
