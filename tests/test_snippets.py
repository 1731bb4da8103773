"""The documents' snippets of Python and of the shell: what they import exists, and those that can run do.

tests/test_python_page.py runs those of docs/PYTHON.md, tests/test_readme.py that of README.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from llava.utils import demo_model_path
from qlip import QLIPConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN = ("llava", "playground", "qlip", "scripts")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r'python -c "(.*?)"', re.DOTALL)


def find_snippets() -> list[tuple[str, str]]:
    """Name and code of each snippet."""
    return [
        (f"{page.relative_to(ROOT)}: {code.splitlines()[0]}", code)
        for page in PAGES
        for pattern in (BLOCK, COMMAND)
        for code in pattern.findall(page.read_text(encoding="utf-8"))
    ]


def find_snippet(page: str, start: str) -> str:
    (code,) = [code for name, code in find_snippets() if name.startswith(f"docs/{page}: {start}")]
    return code


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a snippet takes from the project: `from MODULE import NAME`, `MODULE.NAME`."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OWN:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name in OWN}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node.value.id, node.attr


def test_there_are_snippets() -> None:
    assert len(find_snippets()) >= 18


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in find_snippets()])
def test_what_a_snippet_takes_from_the_project_exists(code: str) -> None:
    found = list(imported(ast.parse(code)))
    assert [f"{module}.{own}" for module, own in found if not hasattr(import_module(module), own)] == []


def test_a_checkpoint_gets_the_defaults_of_qlip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/EVALUATION.md does with LLaVA's 7B."""
    code = find_snippet("EVALUATION.md", "from pathlib").replace("liuhaotian/llava-v1.5-7b'", f"{demo_model_path()}'")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/EVALUATION.md", "exec"), {"__name__": "example"})
    written = json.loads((tmp_path / "llava-v1.5-7b-qlip" / "config.json").read_text(encoding="utf-8"))
    assert written["qlip"] == QLIPConfig().to_dict()


def test_the_devices_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(find_snippet("INSTALL.md", "from llava.utils"), "docs/INSTALL.md", "exec"), {"__name__": "example"})
    assert ast.literal_eval(capsys.readouterr().out)[0] == "cpu"


def test_the_answers_of_chunks_are_joined_in_the_order_of_questions(tmp_path: Path) -> None:
    """Those of twelve chunks here, beside the questions without an answer of one of them."""
    page = (ROOT / "docs" / "BATCH.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"^for i in .*8_.*$", page, re.MULTILINE)
    for index in range(12):
        (tmp_path / f"12_{index}.jsonl").write_text(f"answer {index}\n", encoding="utf-8")
    (tmp_path / "12_3.errors.jsonl").write_text("error\n", encoding="utf-8")
    subprocess.run(["bash", "-euc", loop.replace("8_", "12_").replace("0 7", "0 11")], cwd=tmp_path, check=True)
    joined = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert joined.splitlines() == [f"answer {index}" for index in range(12)]


def test_no_page_joins_files_by_a_pattern() -> None:
    """A pattern sorts 10 before 2, and matches files of errors beside those of answers."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.findall(r"\bcat [^\n`]*\*[^\n`]*", text) == []
