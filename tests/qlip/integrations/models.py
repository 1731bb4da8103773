"""Tiny random models of transformers that QLIP is attached to, with processors that have a tokenizer of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

import qlip
from tests.weights import randomise

NATIVE = 56
"""Pixels per side: 4 x 4 cells."""

WIDTH = 32
SPECIAL = ["<pad>", "<s>", "</s>", "<image>"]
VOCABULARY = 256 + len(SPECIAL)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4}
VISION = {**SHAPE, "num_hidden_layers": 4, "image_size": NATIVE, "patch_size": 14}
TEXT = {**SHAPE, "model_type": "llama", "num_hidden_layers": 2, "vocab_size": VOCABULARY}
TEXT |= {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
IMAGE_TOKEN = SPECIAL.index("<image>")
VISION_MODELS = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
    "dinov2": (Dinov2Config, Dinov2Model),
}
PINPOINTS = [[NATIVE, 2 * NATIVE], [2 * NATIVE, NATIVE]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
    fast.add_tokens(["<image>"], special_tokens=True)
    return fast


def make_language_model(kind: str, **changes: Any) -> Any:
    """`kind`: "llava", "llava_next", "vipllava", "llava_siglip" or "llava_dinov2"."""
    siglip = kind == "llava_siglip"
    tower = {"llava_siglip": "siglip_vision_model", "llava_dinov2": "dinov2"}.get(kind, "clip_vision_model")
    config = {
        "vision_config": {**VISION, "model_type": tower, **({"mlp_ratio": 2} if tower == "dinov2" else {})},
        "text_config": dict(TEXT),
        "image_token_index": IMAGE_TOKEN,
        "image_seq_length": 16,
    }
    if kind == "llava_next":
        config |= {"image_grid_pinpoints": PINPOINTS}
        return randomise(LlavaNextForConditionalGeneration(LlavaNextConfig(**{**config, **changes})))
    if kind == "vipllava":
        config |= {"vision_feature_layers": [-2, -1, 1]}
        return randomise(VipLlavaForConditionalGeneration(VipLlavaConfig(**config, **changes)))
    config |= {"vision_feature_select_strategy": "full" if siglip else "default"}
    return randomise(LlavaForConditionalGeneration(LlavaConfig(**{**config, **changes})))


def make_vision_model(kind: str, **changes: Any) -> Any:
    """`kind`: "clip", "siglip" or "dinov2", the vision model alone."""
    settings, model = VISION_MODELS[kind]
    values = {**VISION, **changes}
    if kind == "dinov2":
        values["mlp_ratio"] = 2
    return randomise(model(settings(**values)))


def make_contrastive_model(kind: str) -> Any:
    """`kind`: "clip" or "siglip", with its text model."""
    text = {**SHAPE, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 2}
    config, model = (CLIPConfig, CLIPModel) if kind == "clip" else (SiglipConfig, SiglipModel)
    return randomise(model(config(text_config=text, vision_config=dict(VISION), projection_dim=WIDTH)))


def make_contrastive_processor() -> CLIPProcessor:
    """CLIP's processor with the tokenizer of bytes."""
    square = {"height": NATIVE, "width": NATIVE}
    images = CLIPImageProcessorPil(size={"shortest_edge": NATIVE}, crop_size=square)
    return CLIPProcessor(image_processor=images, tokenizer=make_tokenizer())


def make_processor(kind: str) -> Any:
    """Makes the processor of `make_language_model(kind)`."""
    square = {"height": NATIVE, "width": NATIVE}
    siglip = kind == "llava_siglip"
    options = {
        "tokenizer": make_tokenizer(),
        "patch_size": 14,
        "vision_feature_select_strategy": "full" if siglip else "default",
        "num_additional_image_tokens": 0 if siglip else 1,
        "chat_template": TEMPLATE,
    }
    if kind == "llava_next":
        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": NATIVE}, crop_size=square, image_grid_pinpoints=PINPOINTS
        )
        return LlavaNextProcessor(image_processor=images, **options)
    if siglip:
        return LlavaProcessor(image_processor=SiglipImageProcessorPil(size=square), **options)
    images = CLIPImageProcessorPil(size={"shortest_edge": NATIVE}, crop_size=square)
    return LlavaProcessor(image_processor=images, **options)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Blobs of random colours, some large and some small."""
    draw = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    for _ in range(12):
        size = int(draw.integers(4, max(5, min(height, width) // 3)))
        row, col = draw.integers(0, height), draw.integers(0, width)
        pixels[row : row + size, col : col + size] = draw.integers(0, 256, 3)
    return Image.fromarray(pixels)


TREE = {
    "criterion": "gradient",
    "geometry": "grid",
    "coarsest": "any",
    "alpha": 0.5,
    "max_tokens": 40,
    "llm_size_bias": 0.0,
}
"""Leaves of all sizes, and positions of the raster alone."""

TURN_SETTINGS = {
    "defaults": {},
    "biased": {**TREE, "llm_size_bias": 1.0},
    "sequential": {**TREE, "llm_positions": "sequential", "llm_size_bias": 1.0},
}
"""For conversations of several turns."""

GREEDY = {"do_sample": False, "max_new_tokens": 4}
PROMPTS = ["USER: <image>\nwhat? ASSISTANT:", "<image> and <image>: which?", "no picture", "see <image>"]
PICTURES = [picture(56, 56, 0), picture(112, 168, 1), picture(56, 98, 2), picture(140, 140, 3)]
"""For `PROMPTS`, in order."""


def attached(kind: str, **settings: Any) -> Any:
    """(model, processor) of `kind`, attached."""
    return qlip.attach(make_language_model(kind), make_processor(kind), **settings)


def pair_kinds(*settings: str) -> list[tuple[str, str]]:
    """Pairs of kind and settings: LLaVA with each of `settings`, two others with those of `TURN_SETTINGS`."""
    return [*(("llava", name) for name in settings), ("llava_next", "defaults"), ("vipllava", "biased")]


def ask(processor: Any, prompts: list[str], pictures: list[Image.Image]) -> Any:
    """A padded batch of prompts about pictures."""
    return processor(images=pictures or None, text=prompts, return_tensors="pt", padding=True)
