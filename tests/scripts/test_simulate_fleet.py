"""The command of the simulation: a table from stage times, the fewest replicas, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.simulate_fleet import main

TIMES = ["--set", "prefill=0.1", "prefill_per_token=0.001", "decode=0.01"]


def table(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    _, *lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines]


def test_a_trace_of_one_request_takes_what_a_hand_count_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps({"at": 1.0, "megapixels": 0.5, "visual": 100, "text": 50, "answer": 11}))
    assert main([*TIMES, "--trace", str(trace), "--replicas", "1", "--slots", "1"]) == 0
    (row,) = table(capsys)
    start, answer = 0.1 + 0.15, 0.25 + 10 * 0.01
    assert row[:3] == ["100", "1", f"{1 / answer:.2f}"]
    assert [float(cell) for cell in row[5:8]] == pytest.approx([start, start, answer])
    assert row[-1] == "100%"


def test_answers_join_together_as_far_as_their_tokens_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request starts from 0 to 0.25, where two more wait since 0.1; prompts take 0.1 and 0.15 for each of them.

    A step of 0.01 follows each start, and each group's images, which take no time here.
    """
    sizes = {"megapixels": 0.5, "visual": 100, "text": 50, "answer": 11}
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(json.dumps({"at": at, **sizes}) for at in (0.0, 0.1, 0.1)))
    flags = [*TIMES, "--trace", str(trace), "--replicas", "1"]
    last = []
    for limit in ([], ["--join-tokens", "299"], ["--batch-tokens", "3"]):
        assert main([*flags, *limit]) == 0
        last.append(float(table(capsys)[0][6]))
    together = 0.25 + 2 * 0.01 + 0.1 + 2 * 0.15
    one_by_one = 0.25 + 2 * (2 * 0.01 + 0.25)
    alone = 3 * 0.25 + 2 * 10 * 0.01
    assert last == pytest.approx([together - 0.1, one_by_one - 0.1, alone - 0.1])


def test_a_larger_budget_needs_no_fewer_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rate", "5", "--requests", "100", "--p95", "1.5", "--budgets", "64", "576", "fixed1000"]
    assert main([*TIMES, *flags]) == 0
    rows = table(capsys)
    assert [row[0] for row in rows] == ["64", "576", "fixed1000"]
    counts = [int(row[1]) for row in rows]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert all(float(row[6]) <= 1.5 and row[4] == "0" for row in rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "there are no stage times"),
        (["--set", "decode=0"], "all stage times are 0"),
        (["--set", "speed=1"], "'speed' is not a stage; allowed are prepare"),
        (["--set", "decode=x"], "'x' is not a number of seconds"),
        ([*TIMES, "--sizes", "10"], "'10' is not a size; write WIDTHxHEIGHT"),
        ([*TIMES, "--budgets", "some"], "'some' is not a budget"),
        ([*TIMES, "--trace", "t.jsonl", "--budgets", "64"], "--budgets is for requests that are drawn; --trace holds"),
        ([*TIMES, "--requests", "5", "--p95", "0.01"], "no number of replicas answers within 0.01 s"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(flags)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
