"""The command that measures the question-aware budget."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.model import builder
from scripts.bench.evidence.question.__main__ import main

WAYS = ("unsplit, CLIP's view", "score, 1.2 x, order side")


@pytest.mark.parametrize(
    ("flags", "criterion", "window"), [([], "structure", 5), (["--criterion", "objects"], "objects", 7)]
)
def test_a_size_is_asked_by_trees_of_the_criterion_and_fills_its_mark(
    flags: list[str],
    criterion: str,
    window: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page, asked = tmp_path / "page.md", []

    def load(*args: object, **kwargs: object) -> object:
        loaded = real(*args, **kwargs)
        asked.append(loaded[1].get_vision_tower().settings)
        return loaded

    real = builder.load_pretrained_model
    monkeypatch.setattr(builder, "load_pretrained_model", load)
    page.write_text("<!-- mine: 16-28 px -->\n<!-- end mine: 16-28 px -->\n<!-- other -->\nkept\n<!-- end other -->\n")
    small = ["--scenes", "1", "--sizes", "16-28", "--mark", "mine", f"--page={page}", "--ways", *WAYS]
    assert main([*small, *flags]) == 0
    (settings,) = asked
    assert (settings.criterion, settings.structure_size) == (criterion, window)
    table = re.search(r"<!-- mine: 16-28 px -->\n(.*)\n<!-- end mine", page.read_text(), re.DOTALL)
    assert table and [line.split(" | ")[0].strip("| ") for line in table[1].splitlines()[2:]] == list(WAYS)
    assert table[1] in capsys.readouterr().out
    assert "kept" in page.read_text()


def test_another_criterion_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--criterion", "random"])
    assert "'random'" in capsys.readouterr().err
