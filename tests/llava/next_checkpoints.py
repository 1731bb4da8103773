"""A small random LLaVA-1.6 checkpoint (anyres), with transformers' own LlavaNextForConditionalGeneration as its oracle.

The oracle's weights are renamed by hand, and its pinpoints are (height, width), as transformers has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from tests.llava.checkpoints import IMAGE_TOKEN, TEXT, VISION, llava_config, llava_state, write_tokenizer
from tests.weights import randomise

SIDE, GRID = 112, 8
PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
"""(width, height), in the proportions of LLaVA-1.6's."""

SETTINGS = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
    "image_crop_resolution": 224,
    "image_split_resolution": 224,
    "mm_vision_tower_lr": 2e-6,
    "unfreeze_mm_vision_tower": True,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "tokenizer_model_max_length": 4096,
}
"""What a config.json of LLaVA-1.6 has beside LLaVA-1.5's fields."""


def next_model(seed: int = 0) -> LlavaNextForConditionalGeneration:
    """The oracle, with weights large enough that different inputs give clearly different logits."""
    config = LlavaNextConfig(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[height, width] for width, height in PINPOINTS],
    )
    return randomise(LlavaNextForConditionalGeneration(config), seed=seed)


def make_next_checkpoint(folder: Path, **changes: Any) -> Path:
    """A folder as LLaVA-1.6 is published: the tuned tower and image_newline are among the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(llava_state(next_model()), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(llava_config(**{**SETTINGS, **changes})))
    write_tokenizer(folder)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def oracle_inputs(
    model: LlavaNextForConditionalGeneration,
    rows: list[list[int]],
    pixels: list[Tensor],
    sizes: list[tuple[int, int]],
) -> dict[str, Tensor]:
    """What the oracle takes: placeholders repeated, prompts padded on the left, tiles padded to one number.

    Args:
        model: the oracle.
        rows: prompts with IMAGE_TOKEN_INDEX.
        pixels: (1 + T, 3, 112, 112) of each image.
        sizes: (width, height) of each image.
    """
    height_first = torch.tensor([(height, width) for width, height in sizes])
    features = [torch.zeros(len(tiles), GRID**2, TEXT["hidden_size"]) for tiles in pixels]
    newline = model.model.image_newline
    lengths = model.model.pack_image_features(features, height_first, "default", newline)[1]
    counts = iter(lengths.tolist())
    long = [
        torch.tensor([t for i in row for t in ([IMAGE_TOKEN] * next(counts) if i == IMAGE_TOKEN_INDEX else [i])])
        for row in rows
    ]
    most = max(len(tiles) for tiles in pixels)
    padded = [torch.cat([tiles, tiles.new_zeros(most - len(tiles), *tiles.shape[1:])]) for tiles in pixels]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(long, True, 0, "left"),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in long], True, 0, "left"),
        "pixel_values": torch.stack(padded),
        "image_sizes": height_first,
    }
