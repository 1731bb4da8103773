"""The averages of reviews, by LLaVA's flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import summarize_gpt_review
from tests.llava.eval.files import write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pair in {"gpt4_text_7b": [8, 6], "review_13b-0613": [10, 9], "answers": [10, 1]}.items():
        rows = [{"question_id": n, "category": "llava_bench_conv", "tuple": pair} for n in range(2)]
        write_rows(tmp_path / "scored" / f"{name}.jsonl", rows)
    return tmp_path / "scored"


def test_the_averages_of_a_file_are_printed_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "score.json"
    assert summarize_gpt_review.main(["-f", str(folder / "gpt4_text_7b.jsonl"), "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["7b", "relative", "reference", "model", "questions", "unread"]
    assert lines[1].split() == ["all", "75.00", "80.00", "60.00", "2", "0"]
    assert json.loads(out.read_text())["rows"]["llava_bench_conv"]["relative"] == 75.0


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ([], ["7b", "review_13b-0613"]),
        (["-s", "13b"], ["review_13b-0613"]),
        (["-v", "0613"], ["review_13b-0613"]),
        (["-v", "0314"], ["7b"]),
        (["-f", "answers.jsonl"], ["answers"]),
    ],
)
def test_files_are_chosen_as_by_llava(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], names: list[str]
) -> None:
    assert summarize_gpt_review.main(["-d", str(folder), *flags]) == 0
    heads = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "relative" in line]
    assert heads == names


def test_a_folder_called_so_holds_reviews_of_any_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summarize_gpt_review.main(["-d", str(folder.rename(folder.with_name("reviews")))]) == 0
    assert capsys.readouterr().out.count("relative") == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --files, or a folder of reviews by --dir"),
        (["-d", "{}", "-s", "34b"], "no file of reviews is left of 2"),
        (["-d", "{}", "--json", "out.json"], "--json takes the averages of one file; here are 2"),
        (["-f", "{}/gpt4_text_7b.jsonl", "--json", "{}/gpt4_text_7b.jsonl"], "is the file of --files"),
        (["-f", "{}/gpt4_text_7b.jsonl", "-i", "0", "1"], "7b: all: no review is left"),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert summarize_gpt_review.main([flag.format(folder) for flag in flags]) == 2
    assert message in capsys.readouterr().err
