"""Recognises checkpoints that `llava` does not support, by their configuration, and says what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.model.config import CONFIGS, TEXT_CONFIGS

SUPPORTED = (
    "supported are LLaVA-1.5 and LLaVA-1.6 checkpoints on Llama, Mistral, Qwen2 and MPT, LLaVA's own and transformers'"
    " (llava-hf/llava-1.5-7b-hf, llava-hf/llava-v1.6-mistral-7b-hf): docs/MODELS.md"
)
ATTACH = "load {what} by transformers' {model_class} and attach QLIP to it (qlip.attach, docs/TRANSFORMERS.md)"
MODEL_CLASSES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
"""`model_type` of transformers' models that are supported on some language models -> their class."""

LLAVA_TYPES = {
    "llava_gemma": ("LLaVA on Gemma", SUPPORTED),
    "llava_mixtral": ("LLaVA on Mixtral", SUPPORTED),
    "llava_qwen_moe": ("LLaVA-NeXT on Qwen's mixture of experts", SUPPORTED),
}
"""`model_type` in LLaVA's format -> common name, alternative."""

TRANSFORMERS_TYPES = {
    "vipllava": ("ViP-LLaVA", ATTACH.format(what="it", model_class="VipLlavaForConditionalGeneration")),
    "llava_next_video": ("LLaVA-NeXT-Video", SUPPORTED),
    "llava_onevision": ("LLaVA-OneVision", SUPPORTED),
    "video_llava": ("Video-LLaVA", SUPPORTED),
}
"""`model_type` in transformers' format -> common name, alternative."""


def describe_unsupported(values: Mapping[str, Any]) -> str | None:
    """Describes what in a checkpoint's config.json is not supported, and the alternative; None if all is."""
    model_type = values.get("model_type")
    model_class = MODEL_CLASSES.get(str(model_type)) if "vision_config" in values else None
    if model_class and isinstance(text := values.get("text_config"), Mapping):
        if str(kind := text.get("model_type", "llama")) in TEXT_CONFIGS:
            return None
        way_out = ATTACH.format(what="it", model_class=model_class)
        return _sentence(f"LLaVA on {kind}", f"text_config.model_type is {kind!r}", way_out)
    if found := {**LLAVA_TYPES, **TRANSFORMERS_TYPES}.get(str(model_type)):
        return _sentence(found[0], f"model_type is {model_type!r}", found[1])
    if str(model_type) not in {**CONFIGS, **TEXT_CONFIGS}:
        return f"the checkpoint is of type {model_type!r}, which is not supported; {SUPPORTED}"
    if (kind := values.get("mm_resampler_type")) is not None:
        return _sentence("LLaVA with a resampler", f"mm_resampler_type is {kind!r}", SUPPORTED)
    return None


def _sentence(name: str, found: str, way_out: str) -> str:
    return f"the checkpoint is {name}, which is not supported ({found}); {way_out}"
