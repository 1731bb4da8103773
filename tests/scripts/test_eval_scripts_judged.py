"""scripts/v1_5/eval of the benchmarks that a language model scores: LLaVA-Bench and MM-Vet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import summarize_gpt_review
from tests.llava.eval.files import read_rows, write_rows
from tests.llava.eval.review.judge_server import QUESTIONS, serve_judge, write_bench
from tests.scripts.eval_scripts import COLOUR, COUNT, RIGHT, Run, picture, questions, score


def test_llavabench_is_answered_then_reviewed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a judge the answers are all; with one the same command goes on from there."""
    data = tmp_path / "llava-bench-in-the-wild"
    write_bench(data)
    for row in QUESTIONS:
        picture(data / "images" / row["image"])
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    done = run("llavabench")
    answers = data / "answers" / "llava-demo.jsonl"
    assert "set OPENAI_API_KEY or OPENAI_BASE_URL and start it again to have them reviewed" in done.stdout
    assert [row["text"] for row in read_rows(answers)][::2] == ["purple", "3"]
    with serve_judge("8 4", "6 6", "10 5") as judge:
        monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
        done = run("llavabench", JUDGE="org/judge")
    assert judge.requests[0]["model"] == "org/judge"
    assert "[Assistant 2]\npurple\n\n" in judge.requests[0]["messages"][1]["content"]
    assert len(read_rows(data / "reviews" / "llava-demo_org-judge.jsonl")) == 3
    rows = score(data / "scores" / "llava-demo_org-judge.json")
    assert rows["llava_bench_conv"] == {
        "relative": 50.0, "reference": 90.0, "model": 45.0, "questions": 2, "unread": 0,
    }  # fmt: skip
    assert "llava_bench_detail" in done.stdout
    with serve_judge("5 5") as judge:  # a name of the hub's form has a folder
        monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
        run("llavabench", CKPT="org/model")
    assert score(data / "scores" / "org" / "model.json")["all"]["relative"] == 100.0
    assert summarize_gpt_review.main(["--dir", str(data / "reviews")]) == 0
    heads = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "relative" in line]
    assert heads == ["llava-demo_org-judge", "org/model"]


def test_llavabench_names_what_is_missing(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "llava-bench-in-the-wild"
    write_bench(data)
    (data / "rule.json").unlink()
    said = run("llavabench", check=3).stderr
    assert f"{data.relative_to(tmp_path)}/rule.json is missing" in said
    assert "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/llava/eval/table/rule.json" in said


def test_mmvet_writes_what_its_judge_takes(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "mm-vet"
    rows = questions(data / "llava-mm-vet.jsonl", data / "images", COLOUR, COUNT)
    write_rows(data / "llava-mm-vet.jsonl", [{**row, "question_id": f"v1_{row['question_id']}"} for row in rows])
    done = run("mmvet")
    written = json.loads((data / "results" / "llava-demo.json").read_text())
    assert written == {"v1_0": RIGHT[COLOUR], "v1_1": RIGHT[COUNT]}
    assert "submit it at https://huggingface.co/spaces/whyu/MM-Vet_Evaluator" in done.stdout
