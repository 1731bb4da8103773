"""The models whose cost is measured: the embedded one, and full-size shapes with random weights.

Builds them and their pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import skimage.data
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene
from playground.vocabulary import prompt
from qlip import QLIPConfig
from scripts.bench.evidence.answering.trees import IN_GRID
from scripts.bench.pictures import PHOTOGRAPHS

SCENE_SERIES = 7100
TEXT_BEFORE, TEXT_AFTER = 35, 20
"""Tokens around the image in LLaVA's prompt with a short question."""


@dataclass(frozen=True)
class Shape:
    """A LLaVA without weights."""

    vision: Mapping[str, Any]
    """Fields of the vision tower's configuration."""
    text: Mapping[str, Any]
    """Fields of the language model's; no layers means that nothing after the projector is measured."""


CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
VICUNA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
SHAPES = {
    "vit-l": Shape(CLIP_LARGE, {**VICUNA_7B, "num_hidden_layers": 0, "vocab_size": 8}),
    "llava-7b": Shape(CLIP_LARGE, VICUNA_7B),
}


@dataclass(frozen=True)
class Subject:
    """A LLaVA that sees through either of two towers of the same weights."""

    name: str
    """What the tables call it."""
    model: LlavaLlamaForCausalLM
    """The model; its tower is whichever `use_tower` chose last."""
    clip: VisionTower
    """CLIP's tower."""
    qlip: QLIPVisionTower
    """QLIP's."""
    own: QLIPConfig
    """QLIP as the model ships it."""
    prompt: Tensor
    """int64 (1, L): a question about one image."""
    picture: Callable[[int, int], Image.Image]
    """Gives a square picture: (side in pixels, number) -> RGB."""

    @property
    def decodes(self) -> bool:
        """Whether it has a language model after the projector."""
        return self.model.config.num_hidden_layers > 0

    def use_tower(self, settings: QLIPConfig | None) -> VisionTower:
        """Chooses the model's tower: QLIP's with these settings, or CLIP's for None."""
        tower = self.clip if settings is None else self.qlip
        if settings is not None:
            self.qlip.settings = settings
        self.model.get_model().vision_tower = tower
        return tower


def load_demo(device: str) -> Subject:
    """Loads the embedded checkpoint, which looks at synthetic scenes of small shapes."""
    tokenizer, model, _, _ = load_pretrained_model(demo_model_path(), device=device, qlip=True)
    clip = load_pretrained_model(demo_model_path(), device=device, qlip=False)[1].get_vision_tower()
    tower = model.get_vision_tower()
    ids = tokenizer_image_token(DEFAULT_IMAGE_TOKEN.join(prompt("What is in the picture?")), tokenizer)
    settings = replace(tower.settings, **IN_GRID)
    return Subject("demo", model, clip, tower, settings, torch.tensor([ids], device=model.device), demo_scene)


def build_random(name: str, shape: Shape, device: str, dtype: torch.dtype) -> Subject:
    """Builds a LLaVA with random weights on its device, which looks at photographs."""
    shared = {"mm_vision_config": dict(shape.vision), "mm_projector_type": "mlp2x_gelu"}
    config = LlavaConfig(**shape.text, **shared, qlip=True)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        clip = build_vision_tower(LlavaConfig(**shape.text, **shared))
    tower = model.get_vision_tower().to(dtype)
    clip.load_state_dict(tower.state_dict(), assign=True)
    for module in (model, clip):
        module.eval().requires_grad_(False)
    text = torch.randint(3, config.vocab_size, (TEXT_BEFORE + 1 + TEXT_AFTER,))
    text[TEXT_BEFORE] = IMAGE_TOKEN_INDEX
    return Subject(name, model, clip, tower, QLIPConfig(**IN_GRID), text[None].to(device), photograph)


def demo_scene(size: int, number: int) -> Image.Image:
    """Draws a scene of small shapes; most numbers have different backgrounds."""
    return Image.fromarray(scene(replace(PRESETS["detail"], size=size), SCENE_SERIES, number).image)


def photograph(size: int, number: int) -> Image.Image:
    """Loads one of scikit-image's photographs, resized to a square."""
    pixels = getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
    return Image.fromarray(pixels).convert("RGB").resize((size, size))
