"""LLaVA-Bench's command: a judge behind the OpenAI protocol reviews a model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_gpt_review_bench
from tests.llava.eval.files import read_rows, write_json, write_rows
from tests.llava.eval.review.judge_server import CONTEXT, KEY, RULES, serve_judge, write_answers, write_bench


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    answers = write_answers(tmp_path / "model.jsonl", "Blue.", "A blue ring.", "Three.")
    files = [*write_bench(tmp_path), str(answers), "--question", str(tmp_path / "questions.jsonl")]
    return [*files, "--output", str(tmp_path / "reviews" / "model.jsonl")]


def test_reviews_are_asked_for_and_written_as_llava_does(flags: list[str], tmp_path: Path) -> None:
    with serve_judge("8 2\nThe ring is purple.", "7, 5", "9 9") as judge:
        assert (
            eval_gpt_review_bench.main([*flags, "--base-url", judge.url, "--judge", "gpt-4", "--max-tokens", "99"]) == 0
        )
    assert judge.keys == [f"Bearer {KEY}"] * 3
    first = judge.requests[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("gpt-4", 0.2, 99)
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    asked = [request["messages"][1]["content"] for request in judge.requests]
    assert asked[0].startswith(
        "[Context]\nA purple ring.\n\n[Question]\nWhat colour is the ring?\n\n[Assistant 1]\nIt is pur"
    )
    assert "[Helper 2]\nA blue ring.\n\n[End of Helper 2]\n\n[System]\nScore the descriptions.\n\n" in asked[1]
    assert asked[2].startswith("[Context]\nThree objects.\nOne is blue.\n\n")
    rows = read_rows(tmp_path / "reviews" / "model.jsonl")
    assert {name: rows[0][name] for name in rows[0].keys() - {"judge", "request"}} == {
        "id": 1,
        "question_id": 0,
        "answer1_id": "answers_gpt4-0",
        "answer2_id": "model-0",
        "category": "llava_bench_conv",
        "content": "8 2\nThe ring is purple.",
        "tuple": [8.0, 2.0],
    }
    assert [row["tuple"] for row in rows] == [[8, 2], [7, 5], [9, 9]]


def test_a_run_that_was_refused_continues_and_shows_no_key(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_judge("8 2", 401) as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 2
    said = capsys.readouterr().err
    assert f"the judge gpt-4-0613 at {judge.url}/ answers 401: Incorrect API key provided: ***" in said
    assert KEY not in said and len(said.splitlines()) == 1
    reviews = tmp_path / "reviews" / "model.jsonl"
    with reviews.open("ab") as file:
        file.write(b'{"id": 2, "question_id"')  # a crash in mid-line
    with serve_judge(429, "7 5", "9 9") as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 0
    assert len(judge.requests) == 3  # one was sent again, as the server wished
    assert [row["tuple"] for row in read_rows(reviews)] == [[8, 2], [7, 5], [9, 9]]
    assert "3 reviews\n" in capsys.readouterr().out


def test_a_review_without_scores_is_asked_for_again(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_judge("I cannot say.", "8 2", "None.", "None.", "None at all.", "9 9") as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 0
    rows = read_rows(tmp_path / "reviews" / "model.jsonl")
    assert [(row["content"], row["tuple"]) for row in rows[:2]] == [("8 2", [8, 2]), ("None at all.", [-1, -1])]
    assert "3 reviews, 1 without scores" in capsys.readouterr().out
    with serve_judge("7 5") as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 0
    assert len(judge.requests) == 1
    assert sorted((row["id"], row["tuple"]) for row in read_rows(tmp_path / "reviews" / "model.jsonl")) == [
        (1, [8, 2]), (2, [7, 5]), (3, [9, 9]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"error": {"message": "Rate limit exceeded", "code": 429}}, "Rate limit exceeded"),
        ({"choices": []}, "gives no answer, but "),
        ({"choices": [{"index": 0, "message": None}]}, "gives no answer, but "),
        (
            {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": "8 7"}]}}]},
            "gives no answer, but ",
        ),
        ([], "gives no answer, but '[]'"),
        (b"<html>Log in</html>", "gives no answer, but '<html>Log in</html>'"),
        (b'{"choices": [', "gives no answer: "),
    ],
    ids=["error", "no choice", "no message", "parts", "list", "page", "cut"],
)
def test_a_reply_of_status_200_without_a_review_is_the_judges_fault(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: Any, message: str
) -> None:
    """As gateways and login pages reply. Nothing is written, so that the same command asks again."""
    with serve_judge(reply) as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 2
    said = capsys.readouterr().err
    assert f"the judge gpt-4-0613 at {judge.url}/ gives no answer" in said and message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "reviews" / "model.jsonl").exists()


@pytest.mark.parametrize("change", ["answer", "judge"])
def test_reviews_of_something_else_are_not_continued(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    more = []
    with serve_judge("8 2") as judge:
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 0
        before = (tmp_path / "reviews" / "model.jsonl").read_bytes()
        if change == "answer":
            write_answers(tmp_path / "model.jsonl", "Blue.", "A red ring.", "Three.")
        else:
            more = ["--judge", "another"]
        assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url, *more]) == 2
    line = 2 if change == "answer" else 1
    assert (
        f"model.jsonl:{line} is of another judge, question or answer, so the file stays as it is"
        in capsys.readouterr().err
    )
    assert (tmp_path / "reviews" / "model.jsonl").read_bytes() == before


def test_what_the_judge_needs_is_checked_before_anything_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    files = [*write_bench(tmp_path), "--check", str(tmp_path / "questions.jsonl")]
    assert eval_gpt_review_bench.main(files) == 0
    capsys.readouterr()

    def fails(message: str) -> None:
        assert eval_gpt_review_bench.main(files) == 2
        assert message in capsys.readouterr().err

    write_rows(tmp_path / "context.jsonl", CONTEXT[:1])
    fails("context.jsonl does not describe '002.png'")
    write_rows(tmp_path / "context.jsonl", CONTEXT)
    write_json(tmp_path / "rule.json", {**RULES, "llava_bench_conv": {"role": "Assistant"}})
    fails("rule.json: llava_bench_conv: the row has no prompt")
    write_json(tmp_path / "rule.json", RULES)
    write_answers(tmp_path / "answers_gpt4.jsonl", "a", "b", "c")
    rows = read_rows(tmp_path / "answers_gpt4.jsonl")
    write_rows(tmp_path / "answers_gpt4.jsonl", rows[:2])
    fails("answers_gpt4.jsonl lacks the answers to 1 of 3 questions")
    write_rows(tmp_path / "answers_gpt4.jsonl", [{**row, "prompt": "Who?"} for row in rows])
    fails("answers_gpt4.jsonl: the answer to '0' is to another question")


def test_a_judge_of_openais_needs_a_key(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert eval_gpt_review_bench.main(flags) == 2
    assert "OPENAI_API_KEY is not set; a judge of OpenAI's needs it" in capsys.readouterr().err
    with serve_judge("8 2") as judge:
        monkeypatch.setenv("OPENAI_BASE_URL", judge.url)
        assert eval_gpt_review_bench.main(flags) == 0


def test_a_judge_that_cannot_be_reached_is_named(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.eval.review.judge.RETRIES", 0)
    with serve_judge("8 2") as judge:
        pass
    assert eval_gpt_review_bench.main([*flags, "--base-url", judge.url]) == 2
    assert f"the judge gpt-4-0613 at {judge.url}/ gives no answer: Connection error." in capsys.readouterr().err


def test_one_file_of_answers_is_not_reviewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*write_bench(tmp_path), "--question", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "out")]
    assert eval_gpt_review_bench.main(flags) == 2
    assert "give two files to --answer-list" in capsys.readouterr().err
