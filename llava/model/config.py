"""The configuration of a LLaVA checkpoint: every multimodal field with its default, validated.

Field names and meanings are those of LLaVA's config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import LlamaConfig, MistralConfig, MptConfig, Qwen2Config
from transformers.models.mpt.configuration_mpt import MptAttentionConfig

from llava.image_geometry import is_anyres, read_pinpoints
from llava.model.field_types import check_types

FEATURE_SELECTIONS = ("patch", "cls_patch")
PADDING_SIDES = ("right", "left")
MERGE_TYPES = ("flat", "spatial", "spatial_unpad", "spatial_maxpool2x2")
OTHER_TILINGS = ("anyres", "highres", "crop_split")
"""Prefixes of LLaVA-NeXT's tiling modes; of these only "anyres" and "anyres_max_N" are supported."""
MODEL_MODULES = tuple(f"llava.model.language_model.llava_{name}" for name in ("llama", "mistral", "mpt", "qwen"))
"""The models, which register themselves with transformers' auto classes."""


def register_models() -> None:
    """Makes the models of these configurations known to transformers; not at this file's top, since they import it."""
    for module in MODEL_MODULES:
        import_module(module)


@dataclass(kw_only=True, init=False, repr=False, eq=False)
class MultimodalConfig:
    """LLaVA's fields of a language model's configuration; mixed in before one of transformers' classes."""

    mm_vision_tower: str | None = None
    """Hub id or folder of the vision tower; None is a text-only model."""

    mm_vision_config: dict | None = None
    """The tower's own configuration, where its weights are part of this checkpoint; None: load `mm_vision_tower`."""

    mm_vision_select_layer: int = -2
    """Which hidden state of the tower is used."""

    mm_vision_select_feature: str = "patch"
    """"patch" drops [CLS], "cls_patch" keeps it."""

    mm_projector_type: str = "linear"
    """"linear", "mlp<N>x_gelu" or "identity"."""

    mm_hidden_size: int | None = None
    """Width of the tower's features; None takes the tower's own."""

    mm_patch_merge_type: str = "flat"
    """How tiles are joined (`llava.model.vision.anyres`): "flat", LLaVA v1.5's, "spatial", "spatial_unpad"."""

    mm_use_im_start_end: bool = False
    """Whether an image is put between <im_start> and <im_end>."""

    mm_use_im_patch_token: bool = False
    """Whether the vocabulary holds <im_patch>."""

    image_aspect_ratio: str | None = None
    """How the CLIP tower's images become square: "pad" to a square, "anyres" or "anyres_max_N" to cut them into tiles,
    or None to crop. The quadtree needs none."""

    image_grid_pinpoints: Any = None
    """Resolutions for tiling (`llava.image_geometry.read_pinpoints`); unused by v1.5."""

    s2: bool | None = None
    """Whether the CLIP tower encodes an image at several scales (S2)."""

    s2_scales: str | None = None
    """Those scales in pixels, the tower's own first: "336,672,1008", the default of `s2`."""

    tokenizer_model_max_length: int | None = None
    """Bound on a training sequence, image tokens included."""

    tokenizer_padding_side: str = "right"
    """Side that batches with labels are padded on; generation always pads on the left."""

    max_sequence_length: int | None = None
    """Context length, where the checkpoint states one."""

    conv_mode: str | None = None
    """Name of the prompt template (`llava.conversation`); None: see `llava.serve.engine.template_warning`."""

    qlip: Any = None
    """The tower: None or False is CLIP's uniform grid, True or a dict of `QLIPConfig` fields the quadtree."""

    def __post_init__(self, **kwargs: Any) -> None:
        register_models()
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.return_dict = True  # transformers' own models fail inside on false; a call's own argument still counts
        check_types(self)
        _check("mm_vision_select_feature", self.mm_vision_select_feature, FEATURE_SELECTIONS)
        if self.mm_patch_merge_type is None:  # LLaVA's own default
            self.mm_patch_merge_type = "flat"
        check_tiling(self)
        _check("tokenizer_padding_side", self.tokenizer_padding_side, PADDING_SIDES)

    def to_json_string(self, use_diff: bool = True) -> str:
        """Formats config.json so that LLaVA's own code reads it too: old names beside new ones, no empty fields.

        LLaVA checks whether a field exists, not whether it is None.
        """
        values = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        kept = {name: value for name, value in values.items() if value is not None or name not in LLAVA_FIELDS}
        return json.dumps(with_old_names(kept), indent=2, sort_keys=True) + "\n"

    @property
    def has_tower(self) -> bool:
        """Whether the model has a vision tower, in the checkpoint or elsewhere."""
        return self.mm_vision_tower is not None or self.mm_vision_config is not None

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        longest: int = self.max_position_embeddings  # type: ignore[attr-defined]
        stated = self.max_sequence_length or self.tokenizer_model_max_length or longest
        return longest if stated >= UNBOUNDED else stated


class LlavaLlamaConfig(MultimodalConfig, LlamaConfig):
    """Llama's configuration with LLaVA's fields.

    transformers' auto classes look a configuration up by its class's name, and have a LlavaConfig of their own.
    """

    model_type = "llava_llama"


LlavaConfig = LlavaLlamaConfig
"""The name in LLaVA's package, and in pickles."""


class LlavaMistralConfig(MultimodalConfig, MistralConfig):
    """Mistral's configuration with LLaVA's fields."""

    model_type = "llava_mistral"


class LlavaQwenConfig(MultimodalConfig, Qwen2Config):
    """Qwen2's configuration with LLaVA's fields."""

    model_type = "llava_qwen"


class LlavaMptConfig(MultimodalConfig, MptConfig):
    """MPT's configuration with LLaVA's fields."""

    model_type = "llava_mpt"
    attribute_map = {**MptConfig.attribute_map, "max_position_embeddings": "max_seq_len"}  # noqa: RUF012 (as in its base)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.use_cache = True  # LLaVA's training leaves false in the file, and every token would run the whole prompt
        check_mpt(self)

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may take together; the attention's distances end at `max_seq_len`."""
        return min(super().context_length, self.max_seq_len)


ImageLanguageConfig = LlavaConfig | LlavaMistralConfig | LlavaMptConfig | LlavaQwenConfig

CONFIGS: dict[str, type[ImageLanguageConfig]] = {
    "llava": LlavaConfig,
    "llava_llama": LlavaConfig,
    "llava_mistral": LlavaMistralConfig,
    "llava_mpt": LlavaMptConfig,
    "llava_qwen": LlavaQwenConfig,
}
"""`model_type` in LLaVA's format -> its configuration."""

TEXT_CONFIGS: dict[str, type[ImageLanguageConfig]] = {
    "llama": LlavaConfig,
    "mistral": LlavaMistralConfig,
    "mpt": LlavaMptConfig,
    "qwen2": LlavaQwenConfig,
}
"""`model_type` of a language model alone -> the configuration of LLaVA on it."""

UNBOUNDED = 10**9
"""Context lengths from this on mean "no limit": transformers writes 10^30."""

LLAVA_FIELDS = frozenset(MultimodalConfig.__annotations__)
"""The fields that LLaVA adds to the language model's."""


MPT_FIELDS: dict[str, tuple[Any, ...]] = {
    "expansion_ratio": (4,),
    "logit_scale": (None,),
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
"""Fields of MPT that transformers' model does not read -> the values that it has built in."""

MPT_ATTENTION: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "attn_type": ("multihead_attention",),
    "attn_uses_sequence_id": (False,),
    "prefix_lm": (False,),
    "qk_ln": (False,),
}
"""Fields of MPT's `attn_config` that transformers' model does not read -> the values that it has built in."""


def check_mpt(config: MptConfig) -> None:
    """Checks that transformers' MPT, which ignores several fields, is the model that a configuration describes.

    Raises:
        ValueError: it would be another model.
    """
    known = MptAttentionConfig()
    for name, value in vars(config.attn_config).items():
        if name in MPT_ATTENTION or not hasattr(known, name):
            _check(f"attn_config.{name}", value, MPT_ATTENTION.get(name, (None, False)))
    for name, allowed in {**MPT_FIELDS, **MPT_ATTENTION}.items():  # older files have some of them at the top
        _check(name, getattr(config, name, allowed[0]), allowed)


def with_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds `torch_dtype`, `rope_theta` and `rope_scaling`, which transformers 4 reads, to a language model's fields.

    Without them it would use its own defaults silently.
    """
    old: dict[str, Any] = {}
    if values.get("dtype") is not None:
        old["torch_dtype"] = values["dtype"]
    if rope := values.get("rope_parameters"):
        kind = rope.get("rope_type", "default")
        old["rope_theta"] = rope.get("rope_theta", 10000.0)
        if kind in ("linear", "dynamic"):
            old["rope_scaling"] = {"type": kind, "factor": rope["factor"]}  # these two fields, or LLaVA refuses it
        elif kind != "default":
            old["rope_scaling"] = {name: value for name, value in rope.items() if name not in ("rope_theta", "type")}
    return {**values, **old}


def check_tiling(config: Any) -> None:
    """Checks how a configuration cuts images into tiles and joins them.

    Raises:
        ValueError: a way that is not supported, or no resolutions for it.
    """
    ratio = config.image_aspect_ratio
    if is_anyres(ratio):
        read_pinpoints(config.image_grid_pinpoints)
    elif str(ratio).startswith(OTHER_TILINGS):
        raise ValueError(
            f"image_aspect_ratio is {ratio!r}; of the ways to cut tiles, allowed are 'anyres', 'anyres_max_N'"
        )
    check_merge_type(config)


def check_merge_type(config: Any) -> None:
    """Checks how a configuration joins tiles.

    Raises:
        ValueError: an unknown way, or one that the tower's features do not allow.
    """
    _check("mm_patch_merge_type", config.mm_patch_merge_type, MERGE_TYPES)
    if config.mm_patch_merge_type != "flat" and config.mm_vision_select_feature != "patch":
        raise ValueError(
            f"mm_vision_select_feature is {config.mm_vision_select_feature!r}; with mm_patch_merge_type"
            f" {config.mm_patch_merge_type!r} only 'patch' is allowed"
        )


def _check(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")
