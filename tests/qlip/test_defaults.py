"""PyTorch's default device and dtype, which a program may have changed, do not change what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

import qlip
from qlip.attention import attention_on_keys, middle_layer
from qlip.language_positions import ImageSpan
from qlip.question import cut_for_question
from tests.qlip.integrations.models import (
    PICTURES,
    PROMPTS,
    WIDTH,
    ask,
    attached,
    make_vision_model,
    picture,
)

DTYPES = (torch.float64, torch.bfloat16)
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "paper": {"geometry": "grid", "leaf_position": "centre", "criterion": "random", "layout": "centered", "alpha": 0.5},
    "mean": {"leaf_position": "mean", "llm_weight": "native", "thumbnail": True, "criterion": "gradient"},
    "split cells": {"keep_split_cells": True, "size_bias": -0.4, "placement": "padded", "llm_positions": "sequential"},
    "variance": {"criterion": "variance", "noise_floor": False, "interpolation": "bilinear", "coarsest": "any"},
}


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """Makes the model under PyTorch's defaults, and restores them."""
    make_vision_model_once()
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    qlip.CoordinateMLP(WIDTH, hidden=16).save(file)
    return str(file)


def under_defaults(run: Callable[[], Any], *, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """Runs something as in a program that has set other defaults."""
    torch.set_default_dtype(dtype or torch.float32)
    torch.set_default_device(device)
    try:
        return run()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def flatten(value: Any) -> list[Any]:
    """Lists the tensors and numbers in a result."""
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, ImageSpan):
        value = [value.count, value.positions, value.length, value.sizes]
    return [part for own in value for part in flatten(own)] if isinstance(value, list | tuple) else [value]


def assert_same(found: Any, expected: Any) -> None:
    for own, wanted in zip(flatten(found), flatten(expected), strict=True):
        if isinstance(wanted, torch.Tensor):
            assert own.dtype == wanted.dtype and own.device == wanted.device and torch.equal(own, wanted)
        else:
            assert own == wanted


def describe(settings: dict[str, Any]) -> Callable[[], Any]:
    """All that is computed of images for a vision model and a language model, without running either."""
    small = picture(140, 98, 3)

    def run() -> list[Any]:
        tower = qlip.QLIPVisionModel(make_vision_model_once(), qlip.QLIPConfig(**settings))
        processor = qlip.QLIPImageProcessor.for_tower(tower)
        packed = dict(processor.pack([small, PICTURES[1]]))
        whole = processor.cutter.normalise(small, tower.qlip)
        leaves = processor.partition(whole.numpy())
        waiting = cut_for_question(processor.cutter.make_preparer(small), tower.native_grid, tower.qlip)
        extra = 16 if tower.qlip.thumbnail else 0
        weights = torch.linspace(0, 1, len(waiting.first.leaves) + extra, dtype=torch.float32, device="cpu")
        refined = waiting.refine(weights)
        span = tower.language_span(leaves)
        return [
            packed, leaves.boxes, leaves.centres, leaves.token_map(), tower.positions(leaves), span,
            ImageSpan.join([span, ImageSpan.sequential(3)]), refined.leaves.boxes, refined.patches,
            qlip.raster_positions(leaves, 4), qlip.Leaves.uniform((2, 3)).boxes,
            tower.encode_cut([processor.cut(whole)]).features,
        ]  # fmt: skip

    return run


@cache
def make_vision_model_once() -> Any:
    """A float32 model on the CPU: `usual` makes it before the defaults change."""
    return make_vision_model("clip")


@cache
def describe_usual(name: str) -> Any:
    """What `describe` finds under PyTorch's own defaults."""
    return describe(SETTINGS[name])()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("defaults", [{"dtype": dtype} for dtype in DTYPES] + [{"device": "meta"}], ids=str)
@torch.no_grad()
def test_images_are_cut_placed_and_encoded_alike(name, defaults):
    assert_same(under_defaults(describe(SETTINGS[name]), **defaults), describe_usual(name))


@pytest.mark.parametrize("defaults", [{"dtype": dtype} for dtype in DTYPES] + [{"device": "meta"}], ids=str)
@torch.no_grad()
def test_a_prior_is_read_and_used_alike(prior: str, defaults: dict[str, Any]):
    def run() -> Any:
        settings = qlip.QLIPConfig(interpolation="mlp", mlp=prior, leaf_position="mean")
        tower = qlip.QLIPVisionModel(make_vision_model_once(), settings)
        tower.load_prior()
        leaves = qlip.Leaves.uniform((5, 6))
        return [tower.positions(leaves), list(tower.prior.state_dict().values())]

    assert_same(under_defaults(run, **defaults), run())


@cache
def attach_usual(kind: str) -> Any:
    """A model, its processor and prompts with images, made under PyTorch's own defaults."""
    model, processor = attached(kind.split()[0], **({"tiling": "tiles"} if "tiles" in kind else {}))
    return model, processor, ask(processor, PROMPTS, PICTURES)


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_next in tiles"])
@pytest.mark.parametrize("defaults", [{"dtype": dtype} for dtype in DTYPES] + [{"device": "meta"}], ids=str)
@torch.no_grad()
def test_prompts_with_images_are_placed_alike(kind: str, defaults: dict[str, Any]):
    model, processor, inputs = attach_usual(kind)
    images = inputs["leaf_boxes"], inputs["leaf_grids"], inputs.get("image_sizes")

    def run() -> Any:
        placed = model.place_images(inputs["input_ids"], inputs["attention_mask"], *images)
        packed = {} if "tiles" in kind and "device" in defaults else dict(processor.image_processor.pack(PICTURES))
        return [placed.positions, placed.sizes, placed.end, packed, model.span_images(*images)[0]]

    assert_same(under_defaults(run, **defaults), run())


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_question_is_asked_alike(dtype: torch.dtype):
    model, processor = attached("llava", budget="question")
    trunk = model.model.language_model
    inputs = ask(processor, PROMPTS[:1], PICTURES[:1])
    real = inputs["attention_mask"].bool()

    def run() -> Any:
        asked = qlip.process_for_question(model, processor, PICTURES[:3], PROMPTS[:2], padding=True)
        weights = attention_on_keys(trunk, middle_layer(trunk), lambda: model(**inputs), real, real)
        return [dict(asked), weights]

    assert_same(under_defaults(run, dtype=dtype), run())
