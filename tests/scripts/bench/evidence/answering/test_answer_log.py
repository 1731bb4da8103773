"""The file of answers: continued after an interruption."""

from __future__ import annotations

import json

from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.scene_sets import KINDS
from scripts.bench.evidence.answering.variants import CLIP
from tests.scripts.bench.evidence.rows import answer_row


def test_a_half_written_line_is_dropped_and_the_log_continues(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = answer_row(CLIP, "a", dict.fromkeys(KINDS, "10"))
    AnswerLog(path).add(first)
    with path.open("a") as file:
        file.write('{"model": "b", ')
    log = AnswerLog(path)
    assert log.has(first)
    assert not log.has({**first, "model": "b"})
    log.add({**first, "model": "b"})
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["a", "b"]
