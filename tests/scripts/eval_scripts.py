"""Runs the scripts of scripts/v1_5/eval, and makes small data for them in the benchmarks' layout."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from llava.utils import demo_picture_path
from tests.llava.eval.files import write_rows

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "v1_5" / "eval"
PICTURE = demo_picture_path().read_bytes()  # a purple ring, a cyan triangle and a blue square
YES, NO = "Is there a purple ring?", "Is there a red ring?"
COLOUR, COUNT = "What colour is the ring?", "How many objects are there?"
RIGHT = {YES: "yes", NO: "no", COLOUR: "purple", COUNT: "3"}
LISTED = f"{COLOUR}\n(A) red\n(B) purple"


class Run(Protocol):
    """Runs a script, expects an exit code, and returns what it wrote."""

    def __call__(
        self, name: str, *flags: str, check: int = 0, **variables: Any
    ) -> subprocess.CompletedProcess[str]: ...


def make_run(python: Path, folder: Path) -> Run:
    """Runs scripts on the data in `folder`.

    Args:
        python: replaces the interpreter.
        folder: EVAL_DIR.
    """

    def run_script(name: str, *flags: str, check: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "CKPT", "SPLIT")}
        own = {"EVAL_DIR": str(folder), "PYTHON": str(python), "PYTHONPATH": str(ROOT), **variables}
        command = ["bash", str(SCRIPTS / f"{name}.sh"), *flags]
        done = subprocess.run(
            command, env=kept | own, cwd=folder, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == check, done.stderr
        return done

    return run_script


def picture(path: Path) -> str:
    """Writes the demo picture; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICTURE)
    return path.name


def questions(path: Path, images: Path, *texts: str, **more: Any) -> list[dict[str, Any]]:
    """Writes a question file and the pictures that it names."""
    rows = [
        {"question_id": number, "image": picture(images / f"{number}.png"), "text": text, **more}
        for number, text in enumerate(texts)
    ]
    write_rows(path, rows)
    return rows


def score(path: Path) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text())["rows"]


def pope(folder: Path) -> Path:
    data = folder / "pope"
    rows = questions(data / "llava_pope_test.jsonl", data / "val2014", YES, NO, YES, category="random")
    labels = [{"image": row["image"], "text": row["text"], "label": RIGHT[row["text"]]} for row in rows]
    write_rows(data / "coco" / "coco_pope_random.json", labels)
    return data


def vstar(folder: Path, categories: Sequence[str] = ("direct_attributes",)) -> Path:
    data = folder / "vstar"
    picture(data / "direct_attributes" / "sa_1.png")
    row = {"image": "direct_attributes/sa_1.png", "text": LISTED, "label": "B"}
    write_rows(
        data / "test_questions.jsonl",
        [row | {"question_id": str(number), "category": category} for number, category in enumerate(categories)],
    )
    return data


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist(rows), path)
