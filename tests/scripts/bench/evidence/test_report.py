"""The report of the experiments: whole, or the tables of some experiments alone."""

from __future__ import annotations

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import report
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

PAGE = "<!-- losses: V* -->\nkept\n<!-- end losses: V* -->\n<!-- paper: count -->\n<!-- end paper: count -->\n"


def test_tables_of_one_experiment_are_filled_and_others_stay(tmp_path):
    own, log = read_own_settings(demo_model_path()), AnswerLog(tmp_path / "answers.jsonl")
    for way in EXPERIMENTS["paper"].ways[:3]:
        row = {"model": "one", "split": "test", "set": "base", "scenes": 2, "way": way.key(own)}
        row |= {"right": dict.fromkeys(KINDS, "10"), "pictures": dict.fromkeys(KINDS, [0, 1])}
        log.add(row | {"tokens": [64, 66], "flops": [2 * 10**9, 10**9], "seconds": 0.0})
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    flags = ["--answers-files", str(tmp_path / "answers.jsonl"), "--document", str(page), "--only", "paper"]
    assert report.main(flags) == 0
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == PAGE.splitlines()[:3]
    assert next(line for line in lines if line.startswith("| CLIP")).startswith(
        "| CLIP | 1.5 | 50.0 (65) | not measured |"
    )
    assert sum(line.startswith("| QLIPConfig.paper") for line in lines) == 3
