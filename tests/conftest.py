"""What all tests share: photographs, the order of files for several processes, less work for the garbage collector."""

from __future__ import annotations

import functools
import gc
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import settings
from PIL import Image

from llava.serve.web.typings import skip_typings

settings.register_profile("untimed", deadline=None)  # a busy machine is not a fault
settings.load_profile("untimed")

# Each HTTP client reads the certificate authorities, which takes longer than most tests of a server.
ssl.create_default_context = functools.cache(ssl.create_default_context)

# Tests see what is installed without extras; those of the compiled loops (qlip/kernels) switch them on.
os.environ["NUMBA_DISABLE_JIT"] = "1"

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

TESTS = Path(__file__).parent
LONGEST = (
    "llava/serve/web/test_browser.py",
    "llava/eval/test_ray_batch.py",
    "llava/serve/web/test_texts.py",
    "scripts/test_soak.py",
    "llava/serve/web/test_layout.py",
    "llava/serve/test_ray_app.py",
    "llava/serve/web/test_picture_actions.py",
    "llava/serve/test_serving_faults.py",
    "llava/serve/web/test_page_script.py",
    "llava/serve/web/test_question_box.py",
    "scripts/test_eval_scripts_faults.py",
    "scripts/checkpoints/test_convert_checkpoint.py",
    "scripts/bench/evidence/answering/test_subject.py",
    "llava/serve/web/test_runs.py",
    "llava/eval/test_model_vqa.py",
    "scripts/bench/test_startup.py",
    "qlip/test_compile.py",
    "scripts/test_eval_scripts.py",
    "test_site.py",
    "llava/train/test_processes.py",
    "llava/train/test_resume.py",
    "llava/eval/run/test_runner.py",
    "playground/test_checkpoint.py",
)
"""Files that take longest; they start first, so that no process waits for another's last file."""

THREADS = torch.get_num_threads()

Photograph = Callable[..., torch.Tensor]


def skip_on_meta(reset_parameters: Callable[[torch.nn.Module], None]) -> Callable[[torch.nn.Module], None]:
    """Initialises no parameters without memory: loading a model makes hundreds, which takes a fifth of the time."""

    def reset_in_memory(module: torch.nn.Module) -> None:
        if not module.weight.is_meta:
            reset_parameters(module)

    return reset_in_memory


for kind in (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d):
    kind.reset_parameters = skip_on_meta(kind.reset_parameters)


@pytest.fixture(scope="module", autouse=True)
def exempt_loaded_objects() -> None:
    """Exempts from garbage collection what is loaded before each file: looking through all of it takes half a second,
    and training does it twice a run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> object:
    """Imports all test files, and with them Gradio; nothing that they load is garbage yet."""
    gc.disable()
    try:
        with skip_typings():
            return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others keep their order."""
    order = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


def pytest_runtest_teardown() -> None:
    """Sets torch's threads back, which commands set: several in each of several processes hinder each other."""
    torch.set_num_threads(THREADS)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a long text by its length: processes send each other the names of all tests."""
    return f"{argname} of {len(val)}" if isinstance(val, str | bytes) and len(val) > 200 else None


def pytest_sessionfinish() -> None:
    """Exempts everything from the last garbage collections, which take seconds and free what ends with the process."""
    gc.freeze()


@pytest.fixture(scope="session")
def photograph() -> Photograph:
    """Makes photographs that ship with scikit-image: (name, height, width) -> float32 (3, height, width).

    With `normalised` the values are what CLIP takes; without, they are whole numbers 0..255, whose sums float32 holds
    exactly, so that equal scores are equal however they were computed.
    """

    def load(name: str, height: int, width: int, *, normalised: bool = True) -> torch.Tensor:
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((width, height))
        values = np.asarray(picture, dtype=np.float32)
        if normalised:
            values = (values / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    return load
