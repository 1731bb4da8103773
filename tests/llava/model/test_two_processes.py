"""Two processes of DistributedDataParallel, one with images and one with text alone, wait for nothing and agree."""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train.assemble import unfreeze
from tests.llava.model.test_text_only import ABOUT_IMAGES, IMAGES, TEXTS, make_model

QLIP = {"alpha": 0.3}


@contextmanager
def process_group(rank: int, store: Path):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


def gradients(model, parallel, with_images: bool) -> dict[str, torch.Tensor]:
    ids = ABOUT_IMAGES if with_images else TEXTS
    parallel(ids, labels=ids.clamp(min=-100), images=IMAGES if with_images else None).loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


def train(rank: int, store: Path) -> tuple[dict[str, torch.Tensor], LlavaLlamaForCausalLM]:
    """Takes two steps, tower and projector trained; each process has images in one. DDP must find nothing unused."""
    with process_group(rank, store):
        model = make_model(QLIP)
        model.model.mm_projector.requires_grad_(True)
        unfreeze(model.get_vision_tower())
        parallel = DistributedDataParallel(model)
        first = gradients(model, parallel, with_images=rank == 0)
        gradients(model, parallel, with_images=rank == 1)
        return first, model


def test_gradients_are_the_mean_of_both_processes(tmp_path):
    other = multiprocessing.get_context("spawn").Process(target=train, args=(1, tmp_path / "store"))
    other.start()
    try:
        averaged, model = train(0, tmp_path / "store")
    finally:
        other.join(60)
        other.kill()
    assert other.exitcode == 0
    alone = gradients(model, model, with_images=True)
    assert averaged.keys() == alone.keys()
    for name, gradient in averaged.items():
        torch.testing.assert_close(gradient, alone[name] / 2)
    assert any(gradient.any() for gradient in alone.values())
