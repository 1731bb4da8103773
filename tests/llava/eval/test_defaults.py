"""docs/EVALUATION.md lists where a command's default is not LLaVA's: the list is right and complete.

LLaVA's defaults are repeated here, so that a new difference fails until it is listed.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
ANSWERS = {
    "--model-base": None, "--image-folder": "", "--question-file": "tables/question.jsonl",
    "--answers-file": "answer.jsonl", "--num-chunks": 1, "--chunk-idx": 0, "--temperature": 0.2,
}  # fmt: skip
SAMPLED = {**ANSWERS, "--top_p": None, "--num_beams": 1}
LLAVA = {
    "llava.serve.cli": {
        "--model-base": None, "--load-8bit": False, "--load-4bit": False, "--debug": False, "--max-new-tokens": 512,
        "--temperature": 0.2,
    },
    "llava.eval.run_llava": {
        "--model-base": None, "--sep": ",", "--temperature": 0.2, "--top_p": None, "--num_beams": 1,
        "--max_new_tokens": 512,
    },
    "llava.eval.model_vqa": {**SAMPLED, "--max_new_tokens": 1024},
    "llava.eval.model_vqa_loader": {**SAMPLED, "--max_new_tokens": 128},
    "llava.eval.model_vqa_mmbench": {
        **SAMPLED, "--max_new_tokens": 1024, "--all-rounds": False, "--single-pred-prompt": False, "--lang": "en",
    },
    "llava.eval.model_vqa_science": {
        **ANSWERS, "--question-file": "tables/question.json", "--max_new_tokens": 1024, "--answer-prompter": False,
        "--single-pred-prompt": False,
    },
    "llava.eval.model_qa": {
        "--question-file": "tables/question.jsonl", "--answers-file": "answer.jsonl", "--temperature": 0.2,
        "--max_new_tokens": 1024,
    },
    "llava.serve.controller": {"--host": "localhost", "--port": 21001, "--dispatch-method": "shortest_queue"},
    "llava.serve.model_worker": {
        "--host": "localhost", "--port": 21002, "--controller-address": "http://localhost:21001", "--model-base": None,
        "--model-name": None, "--limit-model-concurrency": 5, "--stream-interval": 1, "--no-register": False,
        "--load-8bit": False, "--load-4bit": False, "--use-flash-attn": False, "--multi-modal": False,
    },
    "llava.serve.gradio_web_server": {
        "--host": "0.0.0.0", "--port": None, "--controller-url": "http://localhost:21001", "--concurrency-count": 16,
        "--model-list-mode": "once", "--share": False, "--moderate": False, "--embed": False,
    },
}  # fmt: skip
"""Command -> flag -> LLaVA's default; flags whose default depends on the model or the machine are not among them."""


class Caught(Exception):
    """Carries a command's parser out of it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def defaults_of(module: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Flag -> default, of a command's parser."""

    def stop(self: argparse.ArgumentParser, *argv: Any) -> None:
        raise Caught(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    command = importlib.import_module(module)
    with pytest.raises(Caught) as caught:
        command.parse_args([]) if hasattr(command, "parse_args") else command.main([])
    return {flag: action.default for action in caught.value.parser._actions for flag in action.option_strings}


def listed() -> dict[tuple[str, str], tuple[str, str]]:
    """(command, flag) -> (LLaVA's default, ours), of the page's table."""
    section = PAGE.split("## Defaults beside LLaVA's")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    found, command = {}, ""
    for cells in lines:
        command_cell, flag, theirs, ours = (cell.strip().replace("`", "") for cell in cells)
        command = command_cell or command
        for name in command.split(", "):
            full = name if name.startswith("llava.") else f"{command.split(', ')[0].rpartition('.')[0]}.{name}"
            found[full, flag] = theirs, ours
    return found


def as_text(value: object) -> str:
    return "" if value in (None, Path(), "") else str(value)


@pytest.mark.parametrize("module", LLAVA)
def test_what_differs_from_llava_is_listed_and_so(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, rows = defaults_of(module, monkeypatch), listed()
    for flag, theirs in LLAVA[module].items():
        assert flag in ours
        if as_text(ours[flag]) != as_text(theirs):
            if (module, flag) == ("llava.serve.cli", "--temperature"):
                assert ours[flag] is None  # it depends on --prompt
                continue
            assert (module, flag) in rows, f"{flag} of {module} is {ours[flag]!r}, not LLaVA's {theirs!r}"
            if theirs is not None:
                assert rows[module, flag][0] == as_text(theirs)
            if ours[flag] is not None:
                assert rows[module, flag][1] == as_text(ours[flag])
        else:
            assert (module, flag) not in rows


def test_each_line_of_the_table_speaks_of_a_flag_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, flag in listed():
        assert flag in defaults_of(module, monkeypatch), (module, flag)
