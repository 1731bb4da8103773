"""The models of the GPU benchmarks: LLaVA-1.5-7B's shape with random weights, made on the device, and a tiny one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerBase

from llava.model.loading.tokenizer import load_tokenizer
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.utils import demo_model_path
from qlip import QLIPConfig
from scripts.bench.cost_models import CLIP_LARGE, SHAPES, VICUNA_7B, Shape, Subject, build_random, photograph

TINY_VISION = {**CLIP_LARGE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY_TEXT = {**VICUNA_7B, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY = Shape({**TINY_VISION, "num_attention_heads": 2}, {**TINY_TEXT, "num_attention_heads": 2})
"""A small model for trying the benchmarks without a GPU."""

MODELS = {"llava-7b": SHAPES["llava-7b"], "tiny": TINY}


def filled(tokens: int) -> QLIPConfig:
    """Makes QLIP's default settings with alpha 0, so that every image takes its whole budget."""
    return QLIPConfig(alpha=0.0, max_tokens=tokens)


def dtype_on(device: str) -> torch.dtype:
    """Chooses float16, or float32 on a CPU."""
    return torch.float32 if device == "cpu" else torch.float16


def build_subject(model: str, device: str) -> Subject:
    """Builds a model where it stays."""
    torch.manual_seed(0)
    return build_random(model, MODELS[model], device, dtype_on(device))


def build_engine(model: str, device: str, settings: QLIPConfig) -> ChatEngine:
    """Builds a chat engine around a model, with the embedded model's tokenizer, whose tokens are among the model's."""
    subject = build_subject(model, device)
    tower = subject.use_tower(settings)
    context = subject.model.config.max_position_embeddings
    limits = EngineLimits(max_batch=32, max_batch_tokens=32768)
    tokenizer = load_tokenizer(demo_model_path())
    speak_words(subject.model, tokenizer)
    return ChatEngine(tokenizer, subject.model, tower.image_processor, context, "vicuna_v1", limits)


@torch.no_grad()
def speak_words(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets a model say words of a tokenizer alone, so that each of its tokens has a text and none ends an answer.

    The logits of all others become 0, and among those of hundreds of words, which are random, some are larger.
    """
    words = [number for piece, number in tokenizer.get_vocab().items() if not piece.startswith("<")]
    mute = torch.ones(model.lm_head.weight.shape[0], dtype=torch.bool, device=model.lm_head.weight.device)
    mute[words] = False
    model.lm_head.weight[mute] = 0


def build_tower(model: str, device: str) -> CLIPVisionModel:
    """Builds a model's vision tower alone, with random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(**{key: value for key, value in MODELS[model].vision.items() if key != "model_type"})
    with torch.device(device):
        tower = CLIPVisionModel(config)
    return tower.to(dtype_on(device)).eval().requires_grad_(False)


def picture(size: int, number: int) -> Image.Image:
    """Crops a square part of one of four photographs, a different part for each number."""
    whole = photograph(size * 3 // 2, number)
    shift = (number // 4 % 8) / 8
    return ImageOps.fit(whole, (size, size), centering=(shift, 1 - shift)).rotate(90 * (number // 32 % 4))


def write_pictures(folder: Path, size: int, count: int) -> list[Path]:
    """Writes pictures as JPEG files."""
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        picture(size, number).save(file, quality=92)
    return files
