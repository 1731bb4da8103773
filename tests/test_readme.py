"""The README's command answers and its Python runs; the pages' links and paths exist."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a command as a newcomer would, without the flags of the `make` that may have started the tests."""
    inherited = {name: value for name, value in os.environ.items() if name != "ARGS" and not name.startswith("MAKE")}
    return subprocess.run(
        command, cwd=folder, env=inherited, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )


def test_make_chat_answers_one_line_about_the_demo_picture():
    done = run("make", "chat", "PROMPT=What is in the picture?")
    assert done.returncode == 0, done.stderr
    (answer,) = done.stdout.splitlines()
    assert re.search(r"\ba (red|green|blue|yellow|purple|cyan) (square|circle|triangle|cross|ring)\b", answer)


def test_the_python_snippet_runs(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_headings(page):
    for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_a_page_runs_exist(page):
    for name in re.findall(
        r"python -m ((?:qlip|llava|playground|scripts)(?:\.\w+)*)", page.read_text(encoding="utf-8")
    ):
        assert is_file(name) or is_file(f"{name}.__main__"), name


def is_file(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


def test_the_tree_names_what_is_there():
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", ARCHITECTURE, re.DOTALL)
    folder = package = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / names[0] if names[0].count("/") == 1 and names[0].endswith("/") else ROOT
        base = folder if line.startswith(" ") else ROOT
        if line.startswith("    "):  # in the package of the line before
            base = package
        elif names[0].endswith("/"):
            package = base / names[0]
        for name in names:
            place = base if "/" in name else (base / names[0]).parent  # further names are beside the first
            assert list(place.glob(name)), f"{base.name}/{name}"


def test_modules_that_the_architecture_names_exist():
    names = set(re.findall(r"`((?:qlip|llava)(?:\.[a-z_]+)+)(?:\.[A-Z]\w*|\b)", ARCHITECTURE))
    assert len(names) > 10
    for name in names:
        package, _, function = name.rpartition(".")  # `qlip.quadtree.partition`
        file = ROOT / f"{package.replace('.', '/')}.py"
        defines = file.is_file() and f"def {function}(" in file.read_text(encoding="utf-8")
        assert is_file(name) or is_file(f"{name}.__init__") or defines, name


def test_modules_that_moved_are_where_the_changelog_says():
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", CHANGELOG, re.MULTILINE)
    assert len(rows) > 40
    for before, now in rows:
        for name in re.findall(r"`((?:qlip|llava)(?:\.\w+)+)`", now.partition(";")[0]):
            assert is_file(name) or is_file(f"{name}.__init__"), (before, name)


def test_each_figure_that_results_gives_a_command_for_stands_in_the_readme() -> None:
    """Of README's figures beside its table of accuracy; where one is quoted, by the same words."""
    results = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    rows = re.search(r"README's other figures:\n\n\|.*\n\|.*\n((?:\|.*\n)+)", results)[1].splitlines()
    readme = " ".join(README.split())
    quoted = [text for row in rows for text in re.findall('"([^"]+)"', row.split(" | ")[0])]
    assert len(quoted) >= 12
    assert [text for text in quoted if text not in readme] == []


def test_the_readmes_times_of_the_quadtree_are_those_of_its_page() -> None:
    page = (ROOT / "docs" / "results" / "quadtree.md").read_text(encoding="utf-8")
    for criterion, name in (("objects", "default"), ("gradient", "the paper's gradient")):
        section = page.split(f"## {criterion}")[1]
        cells = [cell.strip() for cell in re.search(r"\| 896 px (.*)", section)[1].strip("| ").split("|")]
        _, partition, patches, _, copies, _, times, _, compiled, compiled_copies, compiled_times = cells
        together = float(partition) + float(patches)
        rows = (("", together, times, copies), (", compiled", float(compiled), compiled_times, compiled_copies))
        for kind, milliseconds, faster, longer in rows:
            row = (
                f"| {name}{kind} | {milliseconds:.1f} ms | {float(faster):.0f} times faster | {longer} times as long |"
            )
            assert row in README
