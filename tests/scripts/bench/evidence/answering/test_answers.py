"""Answers read from files, and how they are compared."""

from __future__ import annotations

import json
from pathlib import Path

from qlip import QLIPConfig
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.variants import CLIP
from tests.scripts.bench.evidence.rows import claimed_row


def test_answers_of_a_series_are_read_apart(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "answers.jsonl")
    log.add(claimed_row("CLIP", "a", "10"))
    own = QLIPConfig(max_tokens=128)
    assert Answers([tmp_path / "answers.jsonl"], "series 7", own).cell(CLIP, "base") is not None
    assert Answers([tmp_path / "answers.jsonl"], "test", own).cell(CLIP, "base") is None
    json.loads((tmp_path / "answers.jsonl").read_text())
