"""The GPU check without a GPU: what it reports of parts that fail or take too long, and the page that it writes."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.bench.cost_stages import STAGES
from scripts.bench.gpu import page
from scripts.bench.gpu.__main__ import main
from scripts.bench.gpu.parts import PARTS, Part, report_each
from scripts.bench.gpu.processes import PartProcess

RESULTS = Path(__file__).parents[3] / "docs" / "results"
FACTS = {"date": "2026-01-02", "model": "llava-7b", "machine": {"device": "Some GPU", "torch": "2.0"}, "status": "done"}
CHILD = "import sys; sys.stdin.readline(); print('gpu-check: ' + sys.argv[1], flush=True); {}"


def run_child(after: str, limit: float) -> tuple[str, list[dict[str, Any]]]:
    row = json.dumps({"key": "a", "ms": 1.5})
    return PartProcess([sys.executable, "-c", CHILD.format(after), row]).finish(limit)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_imports_without_a_gpu(part: Part) -> None:
    assert callable(import_module(f"scripts.bench.gpu.{part.module}").run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "skipped" in line and "no GPU" in line


def test_a_part_that_ends_is_done() -> None:
    assert run_child("", limit=60) == ("done", [{"key": "a", "ms": 1.5}])


def test_a_part_that_fails_keeps_what_it_has_measured() -> None:
    assert run_child("sys.exit(3)", limit=60) == ("failed with exit code 3", [{"key": "a", "ms": 1.5}])


def test_a_part_that_takes_too_long_is_stopped_and_keeps_what_it_has_measured() -> None:
    assert run_child("sys.stdin.read()", limit=3) == ("stopped after 3 s", [{"key": "a", "ms": 1.5}])


def test_a_measurement_that_fails_does_not_cost_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory\nand more")

    assert report_each([("first", fail), ("second", lambda: {"ms": 2.0})]) == 1
    rows = [json.loads(line.removeprefix("gpu-check: ")) for line in capsys.readouterr().out.splitlines()]
    assert rows == [{"key": "first", "error": "RuntimeError: CUDA out of memory"}, {"key": "second", "ms": 2.0}]


def test_the_page_says_not_measured_where_the_report_has_nothing() -> None:
    text = page.render({})
    assert text.count("Not measured.") == len(PARTS)
    stopped = page.render({"engine": {**FACTS, "status": "stopped after 100 s", "rows": []}})
    assert "Not measured (stopped after 100 s, 2026-01-02)." in stopped


def test_a_section_names_the_machine_and_what_failed() -> None:
    speeds = {"tokens_per_second": 1234.5, "plain_tokens_per_second": 41.16, "ratio": 29.99}
    waits = {"first_text_p50_s": 0.5, "first_text_p95_s": 12.25, "same_answers": 0.75}
    rows = [
        {"key": "clients: 8", "clients": 8, "requests": 16, "turns": 3, **speeds, **waits},
        {"key": "clients: 32", "error": "RuntimeError: CUDA out of memory"},
    ]
    part = next(part for part in PARTS if part.name == "engine")
    lines = page.section(part, {**FACTS, "rows": rows}).splitlines()
    assert "device Some GPU, torch 2.0; llava-7b; 2026-01-02." in lines
    assert "| 8 | 16 | 1234 | 41.2 | 30.0 | 0.50 | 12.2 | 75% | 3 |" in lines
    assert lines[-1] == "clients: 32: not measured (RuntimeError: CUDA out of memory)."


def test_every_table_shows_its_rows() -> None:
    share = {"size": 896, "criterion": "structure", "leaves": 1150, "turns": 21, "ms": {"ours": 1.0, "tower": 4.0}}
    ratio = {"size": 336, "leaves": 567, "turns": 3, "ms": {"ours": 1.0, "a": 90.0, "b": 50.0}, "ratio": 90.0}
    rates = {"turns": 3, "alone_per_second": 2.0, "runner_per_second": 20.0, "ratio": 10.0, "same_answers": 1.0}
    found = {
        "quadtree": [
            {"key": "a", **share, "share": 0.25},
            {"key": "b", **ratio, "ratio_cpu": 50.0},
            {"key": "c", "size": 672, "criterion": "gradient", "launches": 210, "waits": 9},
        ],
        "first-token": [
            {"key": "CLIP", "tokens": 576, "turns": 6, "ms": {"tower": 5.0, "total": 40.0}, "ratio": 1.0},
            {"key": "QLIP 288", "tokens": 286, "turns": 6, "ms": {"partition": 2.0, "total": 30.0}, "ratio": 0.75},
        ],
        "runner": [{"key": "1 to a picture", "questions": 64, **rates}],
        "tests": [{"key": "tests", "passed": 90, "failed": ["t.py::a"], "skipped": {"t.py::b": "not installed"}}],
    }
    text = page.render({name: {**FACTS, "rows": rows} for name, rows in found.items()})
    for line in (
        "| 896 px | structure | 1150 | 1.00 | 4.00 | 25.0% | 21 |",
        "| 336 px | 567 | 1.00 | 90.0 | 50.0 | 90.0 | 50.0 | 3 |",
        "| 672 px | gradient | 210 | 9 |",
        "| QLIP 288 | 286 | 2.00 | – | 30.0 | 0.75 | 6 |",
        "| 1 to a picture | 64 | 2.00 | 20.0 | 10.0 | 100% | 3 |",
        "90 passed, 1 failed, 1 skipped.",
        "- failed: `t.py::a`",
        "- skipped: `t.py::b`: not installed",
    ):
        assert line in text.splitlines()


def test_the_stages_are_those_that_are_measured() -> None:
    assert page.STAGES == STAGES


def test_the_page_in_docs_is_rendered_from_its_report() -> None:
    assert (RESULTS / page.PAGE).read_text(encoding="utf-8") == page.render(page.load_report(RESULTS))
