"""What training starts from: a language model, a tower, a projector, and a LLaVA checkpoint of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.llava.checkpoints import (
    make_llava_checkpoint,
    projector_state,
    transformers_model,
    write_language_model,
    write_tower,
)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `vicuna`, `clip`, `mm_projector.bin` and `llava`."""
    folder = tmp_path_factory.mktemp("bases")
    oracle = transformers_model()
    write_language_model(folder / "vicuna", oracle)
    write_tower(folder / "clip", oracle)
    torch.save(projector_state(oracle), folder / "mm_projector.bin")
    make_llava_checkpoint(folder / "llava")
    return folder
