"""Tables: what they say, and of which checkpoints."""

from __future__ import annotations

import pytest

from qlip import QLIPConfig
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.scene_sets import KINDS
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED, Variant
from scripts.bench.evidence.pages.tables import kind_table, size_table, table
from tests.scripts.bench.evidence.rows import answer_row


def test_a_table_pools_checkpoints_and_says_what_was_not_measured(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.add(answer_row(CLIP, "a", dict.fromkeys(KINDS, "1100")))
    log.add(answer_row(CLIP, "b", dict.fromkeys(KINDS, "1111")))
    text = table(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED], "base")
    assert "| CLIP | 64.0 | 2.5 | **75.0** [50.0, 100.0] | 50.0 / 100.0 |" in text
    assert "| QLIP as shipped | not measured |" in text


def test_ways_are_compared_on_the_checkpoints_that_were_asked_in_all_of_them(tmp_path):
    path = tmp_path / "answers.jsonl"
    log, other = AnswerLog(path), Variant("random", {"criterion": "random"})
    log.add(answer_row(CLIP, "a", dict.fromkeys(KINDS, "1100")))
    log.add(answer_row(CLIP, "b", dict.fromkeys(KINDS, "1111")))
    log.add(answer_row(SHIPPED, "a", dict.fromkeys(KINDS, "1110")))
    answers = Answers([path], "test", QLIPConfig())
    text = table(answers, [CLIP, SHIPPED, other], "base")
    assert "| CLIP | 64.0 | 2.5 | **50.0**" in text and "| QLIP as shipped | 64.0 | 2.5 | **75.0**" in text
    assert "by checkpoint" not in text and "| random | not measured |" in text
    log.add(answer_row(other, "b", dict.fromkeys(KINDS, "1111")))
    with pytest.raises(ValueError, match="no checkpoint was asked in all ways that were asked about base"):
        table(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED, other], "base")


def test_tables_by_size_and_kind_show_tokens_and_operations(tmp_path):
    path = tmp_path / "answers.jsonl"
    right = {kind: "10" if kind == "count" else "11" for kind in KINDS}
    AnswerLog(path).add(answer_row(SHIPPED, "a", right, tokens=91))
    old = answer_row(CLIP, "a", right)
    del old["flops"]  # as in files of answers from before they were counted
    AnswerLog(path).add(old)
    answers = Answers([path], "test", QLIPConfig())
    text = size_table(answers, [CLIP, SHIPPED], ["base", "large"], ("count", "existence"))
    assert "| QLIP as shipped | 2.5 | 75.0 (91) | not measured |" in text
    assert "| CLIP | not counted | 75.0 (64) | not measured |" in text
    by_kind = kind_table(answers, [CLIP, SHIPPED], "base")
    assert "| colour | shape | relation | count | existence |" in by_kind
    assert "| QLIP as shipped | 91.0 | 2.5 | 100.0 | 100.0 | 100.0 | 50.0 | 100.0 |" in by_kind
