"""The facts of a benchmark: its data, how it is asked, and what its scorer measures."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ANNOTATIONS = (
    "LLaVA's eval.zip, unpacked in EVAL_DIR: https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"
)
"""Where LLaVA's question files are."""

MakeQuestion = Callable[[int, Mapping[str, Any]], dict[str, Any]]
"""Number and row of a data set on the hub -> row of the question file, without its image."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. Paths are below its folder; in texts and paths `{dir}` is that folder and `{split}` the split."""

    name: str
    script: str
    """scripts/v1_5/eval/SCRIPT.sh answers and scores it."""
    folder: str
    """Below playground/data/eval."""
    questions: str
    """The question file."""
    images: str | None
    """The image folder, "" for the benchmark's own; None where the question file holds the images."""
    data: str
    """What the folder must hold, in Markdown."""
    measures: str
    """What the scorer prints, or who scores instead."""
    needs: Mapping[str, str]
    """Path -> how to get it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The scorer's flag -> path of labels."""
    runner: str = "model_vqa_loader"
    """The command of `llava.eval` that answers the questions."""
    flags: tuple[str, ...] = ("--temperature", "0")
    """Flags of that command: how the questions are asked."""
    scorer: str | None = None
    """The module of `llava.eval` that scores the answers."""
    split: str = ""
    columns: tuple[str, ...] = ()
    """Columns of the data set's Parquet files, where these are converted first."""
    every: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field of a question -> values that all occur in the whole benchmark."""
    make_question: MakeQuestion | None = None
    """Converts a row with those columns."""

    def to_markdown(self) -> str:
        """Formats the benchmark as a row of the table in docs/EVALUATION.md."""
        scored = f"`{self.scorer}`: {self.measures}" if self.scorer else self.measures
        return f"| {self.name} | `{self.script}.sh` | {self.data} | {scored} |"

    def to_shell(self, eval_dir: str, folder: str | None = None, split: str | None = None) -> str:
        """Formats the benchmark as assignments of a shell script.

        Args:
            eval_dir: the folder of all benchmarks' data.
            folder: another one than `self.folder`.
            split: another one than `self.split`.
        """
        home = os.path.join(eval_dir, folder or self.folder)
        values = {"dir": home, "split": split or self.split}

        def path(name: str) -> str:
            return os.path.join(home, name.format(**values)) if name else home

        needed = [text for name, how in self.needs.items() for text in (path(name), how.format(**values))]
        image_flags = [] if self.images is None else ["--image-folder", path(self.images)]
        arrays = {
            "LABELS": [text for flag, name in self.labels.items() for text in (flag, path(name))],
            "ASK": [*self.flags, "--question-file", path(self.questions), *image_flags],
            "NEEDED": needed,
        }
        scalars = {
            "DIR": home,
            "SPLIT": values["split"],
            "QUESTIONS": path(self.questions),
            "RUNNER": f"llava.eval.{self.runner}",
            "SCORER": f"llava.eval.{self.scorer}",
        }
        lines = [f"{name}={shlex.quote(value)}" for name, value in scalars.items()]
        return "\n".join([*lines, *(f"{name}=({shlex.join(values)})" for name, values in arrays.items())])
