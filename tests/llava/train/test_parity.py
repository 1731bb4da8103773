"""Losses of AdamW steps equal those of a loop written by hand over transformers' own LLaVA, in every mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.train.handwritten import Loop, write_data
from tests.llava.train.runs import logged, train_on

MIXED = "iitiittiii"  # five batches of two; images and text only


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in LLaVA's format, "model"; samples with images of several sizes, "mixed", and of one, "native"."""
    folder = tmp_path_factory.mktemp("parity")
    make_llava_checkpoint(folder / "model")
    write_data(folder / "mixed", MIXED)
    write_data(folder / "native", MIXED, native=True)
    return folder


def losses(folder: Path, out: Path, data: str = "mixed", **changes: Any) -> list[float]:
    """The losses that our training logs, of one epoch over the samples in their order."""
    train_on(folder / "model", folder / data, out, **{"per_device_train_batch_size": 2, **changes})
    return logged(out)


def by_hand(folder: Path, loop: Loop, batch: int = 2, epochs: int = 1) -> list[float]:
    samples = json.loads((folder / "mixed" / "data.json").read_text())
    return loop.losses(folder / "model", folder / "mixed", samples * epochs, batch)


WHOLE = Loop(rate=1e-3, schedule="linear", decay=0.1, projector_rate=4e-3, aspect="square")
FLAGS = {
    "image_aspect_ratio": WHOLE.aspect,
    "learning_rate": WHOLE.rate,
    "lr_scheduler_type": WHOLE.schedule,
    "weight_decay": WHOLE.decay,
    "mm_projector_lr": WHOLE.projector_rate,
}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of training the whole model on batches of two."""
    return losses(folder, tmp_path_factory.mktemp("whole"), **FLAGS)


def test_projector_only(folder, tmp_path):
    loop = Loop(rate=2e-3, schedule="cosine", warmup=1, projector_only=True, aspect="pad")
    ours = losses(
        folder,
        tmp_path,
        tune_mm_mlp_adapter=True,
        image_aspect_ratio=loop.aspect,
        learning_rate=loop.rate,
        lr_scheduler_type="cosine",
        warmup_ratio=0.2,
    )
    assert ours == pytest.approx(by_hand(folder, loop), abs=1e-4)
    assert len(ours) == 5 and ours[0] != pytest.approx(ours[-1], abs=0.01)


def test_the_whole_model(folder, whole):
    assert whole == pytest.approx(by_hand(folder, WHOLE), abs=1e-4)
    assert len(whole) == 5 and whole[0] != pytest.approx(whole[-1], abs=0.01)


@pytest.mark.parametrize(
    "flags",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
        {"gradient_checkpointing": True},
    ],
    ids=lambda flags: ", ".join(flags),
)
def test_what_changes_no_loss(folder, tmp_path, whole, flags):
    assert losses(folder, tmp_path, **FLAGS, **flags) == pytest.approx(whole, abs=1e-4)


def test_batches_by_tokens_and_packed_rows(folder, tmp_path):
    """All samples fit into one batch, whose order does not matter; packed, into rows of 512 tokens."""
    expected = by_hand(folder, Loop(), batch=len(MIXED), epochs=2)
    assert len(expected) == 2
    for pack in (False, True):
        ours = losses(folder, tmp_path / str(pack), batch_tokens=100_000, pack=pack, num_train_epochs=2)
        assert ours == pytest.approx(expected, abs=1e-4)


def test_the_quadtree_at_alpha_0_is_clip_on_images_of_the_native_size(folder, tmp_path):
    uniform = {"qlip.alpha": 0, "qlip.max_tokens": None, "qlip.llm_size_bias": 0}
    clip = losses(folder, tmp_path / "clip", "native")
    assert losses(folder, tmp_path / "qlip", "native", **uniform) == pytest.approx(clip, abs=1e-5)
