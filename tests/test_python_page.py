"""Every example of docs/PYTHON.md runs as it is, in an empty namespace and a folder with the two files it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.utils import demo_model_path
from scripts import convert_checkpoint, extract_tower

PAGE = (Path(__file__).parent.parent / "docs" / "PYTHON.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"## ([^\n]+)\n|```python\n(.*?)```", PAGE, re.DOTALL)
SHAPE = re.compile(r"\ba (red|green|blue|yellow|purple|cyan) (square|circle|triangle|cross|ring)\b")


def examples() -> list[tuple[str, str]]:
    """The page's examples with the headings above them."""
    found, heading = [], ""
    for title, code in EXAMPLES:
        heading = title or heading
        if code:
            found.append((heading, code))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints that the page's commands write."""
    place = tmp_path_factory.mktemp("page")
    assert extract_tower.main(["--out", str(place / "tower")]) == 0
    flags = ["--model-path", str(demo_model_path()), "--out", str(place / "demo-hf")]
    assert convert_checkpoint.main(flags) == 0
    return place


@pytest.mark.parametrize(("heading", "code"), examples(), ids=lambda text: text.splitlines()[0])
def test_an_example_runs(
    heading: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, f"docs/PYTHON.md, {heading}", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert printed.strip()
    if "What is in the picture?" in code:
        assert SHAPE.search(printed), printed
