"""Each benchmark is declared once: scripts, documentation and the data's conversion read the declaration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.eval import benchmarks
from llava.eval.benchmarks import find_benchmarks

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts" / "v1_5" / "eval"


def test_the_documentations_table_is_what_is_declared() -> None:
    page = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    table = page.split("| benchmark | script |")[1].split("\n\n")[0].splitlines()[2:]
    assert sorted(table) == sorted(benchmark.to_markdown() for benchmark in find_benchmarks().values())


def test_every_script_reads_its_own_declaration() -> None:
    for name in find_benchmarks():
        read = re.findall(r"^benchmark (\w+)", (SCRIPTS / f"{name}.sh").read_text(), re.MULTILINE)
        assert read == [name]


def test_all_benchmarks_are_asked_greedily_and_by_the_checkpoints_own_template() -> None:
    """As docs/EVALUATION.md says beside LLaVA's scripts, which name the template."""
    page = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    said = " ".join(page.split("`llava_v1` and `vicuna_v1` differ")[1].split("\n\n")[0].split())
    assert "This project's scripts ask greedily too, but name no template: it follows the checkpoint" in said
    for name, benchmark in find_benchmarks().items():
        greedy = benchmark.runner == "model_vqa_loader" or "--temperature 0" in " ".join(benchmark.flags)
        assert greedy and "--conv-mode" not in benchmark.flags, name
    assert not [path.name for path in SCRIPTS.glob("*.sh") if "--conv-mode" in path.read_text()]


def test_every_scorer_declares_a_benchmark() -> None:
    scorers = {path.stem for path in (ROOT / "llava" / "eval").glob("eval_*.py")}
    declared = [benchmark.scorer for benchmark in find_benchmarks().values() if benchmark.scorer]
    assert sorted(declared) == sorted(scorers)


def test_paths_and_flags_reach_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["mmbench", "--eval-dir", "/data of mine", "--folder", "mmbench_cn", "--split", "dev"]) == 0
    table = "'/data of mine/mmbench_cn/dev.tsv'"
    url = "https://download.openmmlab.com/mmclassification/datasets/mmbench/dev.tsv, into /data of mine/mmbench_cn"
    assert capsys.readouterr().out.splitlines() == [
        "DIR='/data of mine/mmbench_cn'",
        "SPLIT=dev",
        f"QUESTIONS={table}",
        "RUNNER=llava.eval.model_vqa_mmbench",
        "SCORER=llava.eval.eval_mmbench",
        f"LABELS=(--annotation-file {table})",
        f"ASK=(--single-pred-prompt --temperature 0 --question-file {table})",
        f"NEEDED=({table} '{url}')",
    ]


def test_an_unknown_benchmark_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["vstars"]) == 2
    assert "there is no benchmark 'vstars'; allowed are cvbench," in capsys.readouterr().err
