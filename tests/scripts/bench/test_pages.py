"""Tables in documents are what their commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.pages import find_commands, list_pages, main, run_command_line

HELP = "python -m scripts.bench.serving --help"
OTHER = "OMP_NUM_THREADS=1 python -m scripts.bench.batch --help"


def page_of(*lines: str) -> str:
    return "before\n" + "".join(f"<!-- {line} -->\nold\n<!-- end {line} -->\nbetween\n" for line in lines)


def test_a_command_prints_the_part_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_of(HELP, OTHER))
    assert main([str(page), "--only", "serving"]) == 0
    printed = run_command_line(HELP)
    assert printed.startswith("usage: serving")
    assert page.read_text() == page_of(HELP, OTHER).replace("old", printed, 1)


def test_variables_stand_before_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert find_commands(page_of(HELP, OTHER)) == {HELP: "serving", OTHER: "batch"}
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT=1 python -m scripts.bench.missing failed"):
        run_command_line("NUMBA_DISABLE_JIT=1 python -m scripts.bench.missing")
    assert "No module named scripts.bench.missing" in capfd.readouterr().err


def test_a_benchmark_without_a_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(page_of(HELP))
    assert main([str(page), "--only", "servings"]) == 2
    assert "no page holds a table of servings; there are serving" in capsys.readouterr().err
    assert page.read_text() == page_of(HELP)


def test_each_table_of_the_documents_has_a_known_benchmark() -> None:
    """Their flags are read by `tests/test_documents.py`."""
    commands = {name for page in list_pages() for name in find_commands(page.read_text(encoding="utf-8")).values()}
    assert commands >= {"serving", "joining", "conversation", "loading", "loading_peer", "fleet", "decoding"}
