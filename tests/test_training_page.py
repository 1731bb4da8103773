"""docs/TRAINING.md: its first example teaches the embedded model, its flags exist, its memory table is computed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from llava.train.flags import own_fields, transformers_flags
from llava.train.old_flags import RENAMED, SWITCHES
from qlip.config import QLIPConfig
from scripts.training_memory import make_table
from tests.interpreter import start

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "TRAINING.md").read_text(encoding="utf-8")
OTHER_PROGRAMS = {
    *(
        "model-path",
        "model-base",
        "image-file",
        "prompt",
        "save-model-path",
        "output",
        "out",
        "load-4bit",
    ),  # llava and scripts
    *("nproc-per-node", "nnodes", "node_rank", "master_addr", "module", "num_processes", "multi_gpu"),  # launchers
    *("batch", "length", "gpus", "rank", "help"),
}


def test_the_example_runs_and_the_model_learns_it(tmp_path: Path) -> None:
    """As written, in a folder beside the checkout's `playground`; the embedded model does not know the question."""
    (example, *_) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(example.splitlines()) <= 12
    (tmp_path / "playground").symlink_to(ROOT / "playground")
    (tmp_path / "bin").mkdir()
    with start(tmp_path / "bin", processes=True) as client:
        done = subprocess.run(
            ["bash", "-euc", example], cwd=tmp_path, env=os.environ | {"PATH": f"{client.parent}:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "yes"


def test_its_flags_exist() -> None:
    settings = {f"qlip.{name}" for name in QLIPConfig.__dataclass_fields__}
    known = {*own_fields(), *transformers_flags(), *RENAMED, *SWITCHES, *settings, *OTHER_PROGRAMS}
    found = set(re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", PAGE))
    assert len(found) > 50
    assert found - known == set()


def test_it_names_every_flag_that_llava_lacks() -> None:
    ours = {"unfreeze_mm_vision_tower", "qlip", "eval_data_path", "eval_questions", "eval_image_folder"}
    assert all(f"`--{name}" in PAGE for name in ours | {"max_bad_samples", "batch_tokens", "pack"})


def test_its_memory_table_is_what_the_script_prints() -> None:
    assert make_table(gpus=8, batch=1, length=2048, rank=128) in PAGE
