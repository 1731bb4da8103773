"""The configuration of a LLaVA checkpoint: every multimodal field with its default, validated.

Field names and meanings are those of LLaVA's config.json. Knows nothing of files or weights.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, LlamaConfig

FEATURE_SELECTIONS = ("patch", "cls_patch")
PADDING_SIDES = ("right", "left")


class LlavaConfig(LlamaConfig):
    """Llama's configuration and what LLaVA adds to it."""

    model_type = "llava_llama"

    mm_vision_tower: str | None = None
    """Hub id or folder of the vision tower; None is a model without eyes."""

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
    """How tiles of one image are joined; LLaVA v1.5 knows "flat"."""

    mm_use_im_start_end: bool = False
    """Whether an image stands between <im_start> and <im_end>."""

    mm_use_im_patch_token: bool = False
    """Whether the vocabulary holds <im_patch>."""

    image_aspect_ratio: str | None = None
    """How the CLIP tower's images become square: "pad" to a square, or None to crop. The quadtree needs neither."""

    image_grid_pinpoints: Any = None
    """Resolutions for tiling; unused by v1.5."""

    tokenizer_model_max_length: int | None = None
    """Bound on a training sequence, image tokens included."""

    tokenizer_padding_side: str = "right"
    """Side that batches with labels are padded on; generation always pads on the left."""

    max_sequence_length: int | None = None
    """Context length, where the checkpoint states one."""

    conv_mode: str | None = None
    """Name of the prompt template (`llava.conversation`); None is LLaVA v1.5's "vicuna_v1"."""

    qlip: Any = None
    """The tower: None or False is CLIP's uniform grid, True or a dict of `QLIPConfig` fields the quadtree."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check("mm_vision_select_feature", self.mm_vision_select_feature, FEATURE_SELECTIONS)
        _check("mm_patch_merge_type", self.mm_patch_merge_type, ("flat",))
        _check("tokenizer_padding_side", self.tokenizer_padding_side, PADDING_SIDES)
        for name, kind, allowed in (
            ("mm_vision_tower", str, "a name or null"),
            ("mm_vision_config", dict, "an object"),
        ):
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}")
        if not (self.qlip is None or isinstance(self.qlip, (bool, dict))):
            raise ValueError(f"qlip is {self.qlip!r}; allowed are true, false, null and an object of QLIP settings")

    @property
    def has_tower(self) -> bool:
        """Whether the model has a vision tower, in the checkpoint or elsewhere."""
        return self.mm_vision_tower is not None or self.mm_vision_config is not None

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return self.max_sequence_length or self.tokenizer_model_max_length or self.max_position_embeddings


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}")


AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
