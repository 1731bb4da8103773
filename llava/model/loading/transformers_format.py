"""The format of transformers' LLaVA classes: names of its weights, and its config.json as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from llava.image_geometry import read_pinpoints
from llava.model.config import TEXT_CONFIGS, ImageLanguageConfig
from llava.model.field_types import check_sizes
from llava.model.multimodal_encoder.pretrained import check_select_layer, vision_config

TOWER_PREFIX = "model.vision_tower.vision_tower."

TRANSFORMERS_NAMES = {
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": TOWER_PREFIX,
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^(?:model\.)?image_newline$": "model.image_newline",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:language_model\.model|model\.language_model)\.": "model.",
}
"""Parameter names of transformers' LlavaForConditionalGeneration and LlavaNext's, old and new, -> ours."""

ATTACH_HINT = "load the model by transformers' own class and attach QLIP to it (qlip.attach, docs/TRANSFORMERS.md)"

KEPT_FIELDS = ("qlip", "conv_mode", "mm_use_im_start_end", "mm_use_im_patch_token")
"""LLaVA's fields that a converted checkpoint's config.json keeps beside transformers', as `image_aspect_ratio`."""

NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""(height, width) of transformers' LlavaNext where its configuration names none."""


def config_from_transformers(values: dict[str, Any]) -> ImageLanguageConfig:
    """Builds the configuration for a checkpoint of transformers' LLaVA models (llava-hf/llava-1.5-*, llava-v1.6-*)."""
    for part in ("text_config", "vision_config"):
        if not isinstance(values[part], Mapping):
            raise TypeError(f"{part} is {values[part]!r}; it must be an object")
    if (activation := values.get("projector_hidden_act", "gelu")) != "gelu":
        raise ValueError(f"projector_hidden_act is {activation!r}; allowed is 'gelu'; {ATTACH_HINT}")
    if (bias := values.get("multimodal_projector_bias", True)) is not True:
        raise ValueError(f"multimodal_projector_bias is {bias!r}; allowed is true; {ATTACH_HINT}")
    if values.get("quantization_config"):
        raise ValueError(f"its weights are quantised (quantization_config) under unsupported names; {ATTACH_HINT}")
    text = dict(values["text_config"])
    check_sizes(text)
    config_class = TEXT_CONFIGS[text.pop("model_type", "llama")]
    text["tie_word_embeddings"] = bool(values.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    dtype = text.pop("dtype", None) or text.pop("torch_dtype", None)
    vision = vision_config({"model_type": "clip_vision_model", **values["vision_config"]})
    return config_class(
        **text,
        mm_vision_config=vision.to_dict(),
        mm_vision_select_layer=select_layer(values.get("vision_feature_layer", -2), vision),
        mm_vision_select_feature=select_feature(values, has_cls=vision.model_type == "clip_vision_model"),
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=vision.hidden_size,
        **tiling_from_transformers(values),
        dtype=values.get("dtype") or values.get("torch_dtype") or dtype,
        **{name: values[name] for name in KEPT_FIELDS if name in values},
    )


def select_layer(layers: Any, vision: PreTrainedConfig) -> int:
    """Reads transformers' `vision_feature_layer`, a number or a list; several layers are joined, and not supported.

    Raises:
        ValueError: there are several, or `vision`, the tower's configuration, has none of this number.
    """
    layer = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    if isinstance(layer, list):
        raise ValueError(f"vision_feature_layer is {layers}; allowed is one layer; {ATTACH_HINT}")
    if type(layer) is not int:
        raise ValueError(f"vision_feature_layer is {layers!r}; it must be an integer")
    check_select_layer(layer, vision, "vision_feature_layer")
    return layer


def select_feature(values: Mapping[str, Any], has_cls: bool) -> str:
    """Reads transformers' `vision_feature_select_strategy` as LLaVA's `mm_vision_select_feature`.

    Raises:
        ValueError: it is unknown, or drops the first token of a tower without [CLS], which is a patch.
    """
    strategy = values.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy is {strategy!r}; allowed are 'default' and 'full'")
    if has_cls:
        return "cls_patch" if strategy == "full" else "patch"
    if strategy == "default":
        raise ValueError(
            "vision_feature_select_strategy is 'default' (as where it is left out), which drops the first token: of a"
            " tower without [CLS], a patch; allowed is 'full'"
        )
    return "patch"


def tiling_from_transformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads how transformers' LLaVA models cut and join tiles; LlavaNext's resolutions are (height, width)."""
    if values.get("model_type") != "llava_next":
        ratio = values.get("image_aspect_ratio", "pad")  # a converted checkpoint's; its class knows no tiles
        return {"image_aspect_ratio": ratio if ratio in ("pad", "square", None) else "pad"}
    pinpoints = values.get("image_grid_pinpoints") or NEXT_PINPOINTS
    return {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[width, height] for height, width in read_pinpoints(pinpoints)],
    }
