"""Attaches QLIP to a model of transformers: `model, processor = qlip.attach(model, processor)`.

Chooses the mixin for a model (`qlip.integrations.llava` or `qlip.integrations.vision`), or explains why none fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn
from transformers import (
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SiglipModel,
    VipLlavaForConditionalGeneration,
)

from qlip.backbones import open_clip
from qlip.backbones.registry import find_adapter, find_obstacle
from qlip.config import QLIPConfig
from qlip.decoder_masks import check_takes_bias, counts_tokens
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.integrations.attachment import OFFLOADED, Attachment, check_attention
from qlip.integrations.classes import (
    AttachedMixin,
    check_not_part,
    find_attachment,
    mark_part,
    patch_classes,
    unpatch,
)
from qlip.integrations.llava import LlavaMixin
from qlip.integrations.llava_trunk import LlavaTrunkMixin, feature_layers, select_strategy
from qlip.integrations.next_tiles import NextImageProcessor, NextTiles
from qlip.integrations.processor import attach_processor, check_processor, detach_processor
from qlip.integrations.settings import choose_settings, read_checkpoint, restore_entry
from qlip.integrations.vision import ContrastiveMixin, LibraryVisionMixin, VisionMixin
from qlip.language_positions import BIASABLE

LANGUAGE_MODELS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, VipLlavaForConditionalGeneration)
CONTRASTIVE_MODELS = (CLIPModel, SiglipModel)

NAMES = ", ".join(known.__name__ for known in (*LANGUAGE_MODELS, *CONTRASTIVE_MODELS))

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, processor: Any = None, config: QLIPConfig | None = None, **settings: Any) -> tuple[Model, Any]:
    """Makes a model's vision tower encode the leaves of a quadtree instead of a uniform grid, without retraining.

    The model is changed in place: it gets a subclass of its own class; weights and their names stay as they are.
    `generate`, batches, pipelines, training and saving work as before. The settings are saved in its configuration as
    `qlip`, so that `attach(model, processor)` finds them after `from_pretrained`.

    Args:
        model: LlavaForConditionalGeneration, LlavaNextForConditionalGeneration (leaves take the places of its tiles'
            tokens), VipLlavaForConditionalGeneration, with a tower of CLIP, SigLIP or DINOv2; CLIPModel, SiglipModel;
            CLIPVisionModel, SiglipVisionModel, Dinov2Model; a VisionTransformer of timm; a model of open_clip.
        processor: the model's processor; for a vision model also its image processor. None makes an image
            processor with the values that such models are trained with.
        config: all settings at once; by default those that the checkpoint holds, else those of `QLIPConfig`. Those of
            an earlier `attach` do not count.
        **settings: fields of `QLIPConfig` (`alpha`, `max_tokens`, ...) that override `config`. A relative path `mlp`,
            here or in `config`, begins in the working directory; a saved one in the checkpoint's folder.

    Returns:
        The model, and a processor that cuts images and expands <image> to a token for each leaf. The given processor
        is not changed.

    Raises:
        FileNotFoundError: there is no MLP prior at the path in the settings.
        TypeError: the model is not supported, or is a part of an attached one, or has a forward method stored on it,
            or the processor is of another kind.
        ValueError: a setting is out of range, or has no effect, or the model's attention can't apply it.
    """
    check_model(model)
    saved = read_checkpoint(model)
    chosen = choose_settings(model, saved, config, settings)
    tower, layers = find_tower(model)
    check_tower(tower)
    if isinstance(model, LANGUAGE_MODELS):
        check_language_model(model, chosen)
    elif chosen.thumbnail:
        raise ValueError("thumbnail is true; only models with a language model take it, this is a vision model")
    plain = restore_processor(model, processor)
    check_processor(plain)
    vision = QLIPVisionModel(tower, chosen, layers)
    vision.load_prior()
    tiles = find_tiles(model, vision, plain)
    attachment = Attachment(vision, make_image_processor(model, vision, plain, tiles), plain, tiles, saved)
    new_processor = join_processor(model, plain, attachment.image_processor)
    mixins = choose_mixins(model, tower)
    if chosen.keep_split_cells and vision.has_cls and mixins[-1][1] not in (LlavaMixin, VisionMixin):
        raise ValueError("keep_split_cells is true, so that [CLS] sees no leaf, and this model gives [CLS] alone")
    patch_classes(model, mixins, attachment)
    if mixins[-1][0] is model:
        for part in {*(module for module, _ in mixins), tower} - {model}:
            mark_part(part, model)
    if isinstance(model, PreTrainedModel):
        model.config.qlip = chosen.to_dict()
    return model, new_processor


def detach(model: Model, processor: Any = None) -> tuple[Model, Any]:
    """Undoes `attach`, in the model and in its configuration.

    Args:
        model: an attached model.
        processor: the processor that `attach` returned.

    Returns:
        The model, and the processor that `attach` was given.

    Raises:
        TypeError: the model is not attached, or is a part of one that is, or is not a model, or has a forward method
            stored on it.
    """
    check_model(model)
    visual = open_clip.find_visual(model)
    attached = model if visual is None else visual  # a model of open_clip keeps its class, its tower changes
    if not isinstance(attached, AttachedMixin):
        inside = "" if find_attachment(model) is None else ", but a model inside it is: detach that one"
        raise TypeError(f"{type(model).__name__} is not attached{inside}")
    plain = restore_processor(model, processor)
    saved = attached.attachment.saved
    unpatch(model)
    if isinstance(model, PreTrainedModel):
        restore_entry(model.config, saved)
    return model, plain  # type: ignore[return-value]


def choose_mixins(model: nn.Module, tower: nn.Module) -> list[tuple[nn.Module, type]]:
    """Chooses the mixin of each module whose class changes, inner ones first."""
    if isinstance(model, LANGUAGE_MODELS):
        return [(model.model, LlavaTrunkMixin), (model, LlavaMixin)]
    if not isinstance(tower, PreTrainedModel):
        return [(tower, LibraryVisionMixin)]
    return [(tower, VisionMixin)] if tower is model else [(tower, VisionMixin), (model, ContrastiveMixin)]


def check_model(model: object) -> None:
    """Raises TypeError unless `model` is a loaded model and not part of an attached one."""
    if isinstance(model, nn.Module):
        return check_not_part(model)
    what = repr(model) if model is None or isinstance(model, (str, type)) else f"a {type(model).__name__}"
    hint = "load it first, by its class's from_pretrained"
    if isinstance(model, (ProcessorMixin, PreTrainedTokenizerBase)):
        hint = "the model comes first, then its processor"
    elif isinstance(getattr(model, "model", None), nn.Module):
        hint = "give its attribute `model`"
    raise TypeError(f"model is {what}; it must be one of {NAMES}, or a vision model such as CLIPVisionModel; {hint}")


def restore_processor(model: nn.Module, processor: Any) -> Any:
    """Restores the processor that a model had before it was attached; returns any other as it is."""
    attachment = find_attachment(model)
    if isinstance(processor, QLIPImageProcessor) and attachment is not None:
        return attachment.plain_processor
    return detach_processor(processor)


def find_tower(model: nn.Module) -> tuple[nn.Module, int | Sequence[int]]:
    """Finds the vision model in a model, and which of its hidden states are used.

    Raises:
        TypeError: QLIP does not support this model.
    """
    if isinstance(model, LANGUAGE_MODELS):
        return model.model.vision_tower, feature_layers(model.config)
    if isinstance(model, CONTRASTIVE_MODELS):
        return model.vision_model, -1
    if (tower := open_clip.find_visual(model)) is not None:
        return tower, -1
    if hasattr(model, "_orig_mod"):
        raise TypeError(f"{type(model).__name__} is compiled; attach model._orig_mod, and compile it afterwards")
    if hasattr(model, "get_base_model"):
        raise TypeError(f"{type(model).__name__} is wrapped by PEFT; attach model.get_base_model()")
    if hasattr(model, "get_vision_tower"):
        raise TypeError(
            f"{type(model).__name__} is LLaVA's own class, which is not attached but loaded with QLIP inside:"
            f" llava.model.builder.load_pretrained_model(..., qlip=True). attach supports {NAMES}"
        )
    if hasattr(getattr(model, "config", None), "vision_config"):
        reason = find_obstacle(model) or "it is not known to take a variable number of tokens"
        raise TypeError(f"QLIP can't be attached to {type(model).__name__}: {reason}. It supports {NAMES}")
    return model, -1


def check_tower(tower: nn.Module) -> None:
    """Raises TypeError or ValueError unless leaves can be this tower's tokens, and it has what it is to give."""
    adapter = find_adapter(tower)(tower)
    if not adapter.pools and not isinstance(tower, PreTrainedModel):
        raise TypeError(
            f"this {type(tower).__name__} has no pooled output (global_pool of timm is '', pool_type of open_clip"
            " 'none'), all that QLIP gives of it; choose one when making the model, or take qlip.QLIPVisionModel, whose"
            " features are those of the leaves"
        )
    check_attention(adapter.attention)
    if (channels := adapter.patch_projection.weight.shape[1]) != 3:
        raise ValueError(f"the vision tower takes images of {channels} channels; QLIP prepares RGB images, of 3")
    if any(parameter.is_meta for parameter in tower.parameters()):
        raise ValueError(OFFLOADED)


def check_language_model(model: Any, settings: QLIPConfig) -> None:
    """Raises unless the language model can take the tower's tokens, positions and attention weights."""
    has_cls = find_adapter(model.model.vision_tower).prefix > 0
    # VipLlava has no strategy: it always drops the first token.
    strategy = getattr(model.config, "vision_feature_select_strategy", "default")
    if strategy != select_strategy(has_cls):
        what = "keep [CLS], which has no place on the image" if has_cls else "drop a patch, as there is no [CLS]"
        raise TypeError(f"vision_feature_select_strategy is {strategy!r}: it would {what}")
    text = model.config.get_text_config()
    names = [type(module).__name__ for module in model.model.language_model.modules()]
    rotary = not counts_tokens(text) and any("Rotary" in name for name in names)  # Falcon may have both
    if settings.llm_positions == "raster" and not rotary:
        raise TypeError(
            f"the language model {text.model_type!r} has no rotary positions, which fractional positions need;"
            " give llm_positions='sequential'"
        )
    biased = settings.biases_language_model
    if biased and counts_tokens(text):  # its attention converts any mask to bool
        raise ValueError(
            f"llm_size_bias is {settings.llm_size_bias} and llm_weight {settings.llm_weight!r}, but the language model"
            f" {text.model_type!r} takes no bias; give llm_size_bias=0"
        )
    if biased and text._attn_implementation not in BIASABLE:
        raise ValueError(
            f"llm_size_bias is {settings.llm_size_bias} and llm_weight {settings.llm_weight!r}, but the language"
            f" model's attention {text._attn_implementation!r} takes no bias; load it with 'sdpa' or 'eager', or give"
            " llm_size_bias=0"
        )
    if biased:
        check_takes_bias(model.model.language_model, text)


def find_tiles(model: nn.Module, vision: QLIPVisionModel, processor: Any) -> NextTiles | None:
    """Finds how LLaVA-NeXT tiles images; None for other models.

    Raises:
        ValueError: the settings want a quadtree in each tile, and the model has no tiles, the processor makes none, or
            a question decides.
    """
    if not isinstance(model, LlavaNextForConditionalGeneration):
        if vision.qlip.tiling == "tiles":
            raise ValueError(
                f"tiling is 'tiles', for LlavaNextForConditionalGeneration alone; {type(model).__name__} takes 'image'"
            )
        return None
    if vision.qlip.tiling == "tiles":
        plain = getattr(processor, "image_processor", processor)
        if not hasattr(plain, "image_grid_pinpoints"):
            raise ValueError(
                f"tiling is 'tiles', which the model's own processor makes (AutoProcessor); given is"
                f" {'none' if plain is None else type(plain).__name__}; give it, or tiling='image'"
            )
        if vision.qlip.budget != "score":
            raise ValueError(f"budget is {vision.qlip.budget!r}; allowed with tiling 'tiles' is 'score'")
    return NextTiles.of(model.config, vision.native_grid)


def make_image_processor(
    model: nn.Module, vision: QLIPVisionModel, processor: Any, tiles: NextTiles | None = None
) -> QLIPImageProcessor:
    """Makes QLIP's image processor with the mean and standard deviation of the model's own."""
    plain = getattr(processor, "image_processor", processor)
    kind = QLIPImageProcessor if tiles is None else NextImageProcessor
    ours = kind.for_tower(vision, plain, open_clip.find_normalisation(model, vision.adapter.normalisation))
    ours.plain = plain
    if isinstance(ours, NextImageProcessor) and tiles is not None:
        ours.tiles = tiles
    return ours


def join_processor(model: nn.Module, processor: Any, image_processor: QLIPImageProcessor) -> Any:
    """Makes the processor that `attach` returns.

    Raises:
        TypeError: the processor for a language model has no tokenizer.
    """
    if isinstance(processor, ProcessorMixin):
        return attach_processor(processor, image_processor)
    if processor is not None and isinstance(model, LANGUAGE_MODELS):
        raise TypeError(
            f"the processor is a {type(processor).__name__}; {type(model).__name__} needs one with both an image"
            " processor and a tokenizer (AutoProcessor)"
        )
    return image_processor
