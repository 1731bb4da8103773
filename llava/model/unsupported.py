"""Recognises checkpoints that `llava` does not support, by their configuration, and says what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = ("llava", "llava_llama", "llama")
"""`model_type` of the checkpoints of LLaVA's format that are supported, the bare language model included."""

SUPPORTED = (
    "supported are LLaVA-1.5 and LLaVA-1.6 checkpoints on Llama, LLaVA's own and transformers'"
    " (llava-hf/llava-1.5-7b-hf, llava-hf/llava-v1.6-vicuna-7b-hf)"
)
ATTACH = "load {what} by transformers' {model_class} and attach QLIP to it (qlip.attach, docs/TRANSFORMERS.md)"
NEXT_CLASS = "LlavaNextForConditionalGeneration"
MODEL_CLASSES = {"llava": "LlavaForConditionalGeneration", "llava_next": NEXT_CLASS}
"""`model_type` of transformers' models that are supported on Llama -> their class."""
NEXT = ATTACH.format(what="transformers' version of it (llava-hf/llava-v1.6-*)", model_class=NEXT_CLASS)

LLAVA_TYPES = {
    "llava_mistral": ("LLaVA-1.6 on Mistral", NEXT),
    "llava_mpt": ("LLaVA on MPT", SUPPORTED),
    "llava_qwen": ("LLaVA-NeXT on Qwen", SUPPORTED),
}
"""`model_type` in LLaVA's format -> common name, alternative."""

TRANSFORMERS_TYPES = {
    "vipllava": ("ViP-LLaVA", ATTACH.format(what="it", model_class="VipLlavaForConditionalGeneration")),
    "llava_next_video": ("LLaVA-NeXT-Video", SUPPORTED),
    "llava_onevision": ("LLaVA-OneVision", SUPPORTED),
    "video_llava": ("Video-LLaVA", SUPPORTED),
}
"""The same in transformers' format."""


def describe_unsupported(values: Mapping[str, Any]) -> str | None:
    """Describes what in a checkpoint's config.json is not supported, and the alternative; None if all is."""
    model_type = values.get("model_type")
    is_transformers = "vision_config" in values and model_type in MODEL_CLASSES
    if is_transformers and isinstance(text := values.get("text_config"), Mapping):
        if (kind := text.get("model_type", "llama")) == "llama":
            return None
        way_out = ATTACH.format(what="it", model_class=MODEL_CLASSES[model_type])
        return _sentence(f"LLaVA on {kind}", f"text_config.model_type is {kind!r}", way_out)
    if found := {**LLAVA_TYPES, **TRANSFORMERS_TYPES}.get(str(model_type)):
        return _sentence(found[0], f"model_type is {model_type!r}", found[1])
    if model_type not in TYPES:
        return f"the checkpoint is of type {model_type!r}, which is not supported; {SUPPORTED}"
    if values.get("s2"):
        return _sentence("S2", f"s2 is {values['s2']!r}, s2_scales is {values.get('s2_scales')!r}", SUPPORTED)
    if (kind := values.get("mm_resampler_type")) is not None:
        return _sentence("LLaVA with a resampler", f"mm_resampler_type is {kind!r}", SUPPORTED)
    return None


def _sentence(name: str, found: str, way_out: str) -> str:
    return f"the checkpoint is {name}, which is not supported ({found}); {way_out}"
