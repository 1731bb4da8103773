"""QLIP in a few lines inside transformers: `model, processor = qlip.attach(model, processor)`.

Decides which host class fits a model, and says why where none does. The hosts are `qlip.integrations.llava` and
`qlip.integrations.vision`, the processor is `qlip.integrations.processor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
from qlip.backbones.registry import find_adapter, why_not
from qlip.config import QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.integrations.attachment import Attachment, attachment_of, check_whole, mark_part, patch_class, unpatch
from qlip.integrations.llava import LanguageModel, LanguageTrunk
from qlip.integrations.processor import attach_processor, detach_processor
from qlip.integrations.vision import ContrastiveModel, LibraryVisionModel, VisionModel
from qlip.language_positions import BIASABLE

LANGUAGE_MODELS = (LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, VipLlavaForConditionalGeneration)
CONTRASTIVE_MODELS = (CLIPModel, SiglipModel)

NAMES = ", ".join(known.__name__ for known in (*LANGUAGE_MODELS, *CONTRASTIVE_MODELS))

Model = TypeVar("Model", bound=nn.Module)


def attach(model: Model, processor: Any = None, config: QLIPConfig | None = None, **settings: Any) -> tuple[Model, Any]:
    """Lets a model of transformers see the leaves of a quadtree instead of a uniform grid, without retraining.

    The model is changed in place, by giving it a subclass of its own class; its weights and their names stay as they
    are. Whatever worked with it works as before: `generate`, batches, pipelines, training, saving. Its configuration
    carries the settings as `qlip`, so that `attach(model, processor)` finds them again after `from_pretrained`.

    Args:
        model: LlavaForConditionalGeneration, LlavaNextForConditionalGeneration (whose tiles are off: the one image
            goes through QLIP), VipLlavaForConditionalGeneration, with a CLIP or SigLIP tower; CLIPModel, SiglipModel;
            CLIPVisionModel, SiglipVisionModel, Dinov2Model; a VisionTransformer of timm; a model of open_clip.
        processor: the model's processor; for a vision model also its image processor. Without one, an image processor
            with the values that such models are trained with is made.
        config: all settings at once. By default what the model's configuration says, else the defaults.
        **settings: fields of `QLIPConfig` (`alpha`, `max_tokens`, ...), laid over `config`.

    Returns:
        The model, and a processor that cuts pictures and turns <image> into as many tokens as each has leaves. The
        processor given stays as it is.

    Raises:
        FileNotFoundError: the settings name an MLP prior that is nowhere.
        TypeError: there is no such place in this model, or it is a part of an attached one, or model or processor is
            something else; the text says what is allowed.
        ValueError: a setting is out of range, or one that the model's attention can't apply.
    """
    check_model(model)
    chosen = choose_settings(model, config, settings)
    tower, layers = find_tower(model)
    check_tower(tower)
    if isinstance(model, LANGUAGE_MODELS):
        check_language_model(model, chosen)
    elif chosen.thumbnail:
        raise ValueError("thumbnail is true; it is for models with a language model, this is a vision model")
    plain = plain_processor(model, processor)
    check_processor(plain)
    vision = QLIPVisionModel(tower, chosen, layers)
    vision.load_prior()
    attachment = Attachment(vision, make_image_processor(vision, plain), plain)
    new_processor = join_processor(model, plain, attachment.image_processor)
    unpatch(model)
    if isinstance(model, LANGUAGE_MODELS):
        for part in (model.model, tower):
            mark_part(part, model)
        patch_class(model.model, LanguageTrunk, attachment)
        patch_class(model, LanguageModel, attachment)
    elif isinstance(tower, PreTrainedModel):
        patch_class(tower, VisionModel, attachment)
        if tower is not model:
            mark_part(tower, model)
            patch_class(model, ContrastiveModel, attachment)
    else:
        patch_class(tower, LibraryVisionModel, attachment)
    if isinstance(model, PreTrainedModel):
        model.config.qlip = chosen.to_dict()
    return model, new_processor


def detach(model: Model, processor: Any = None) -> tuple[Model, Any]:
    """Undoes `attach`: the model is what it was, the flag is gone from its configuration.

    Args:
        model: an attached model.
        processor: the processor that `attach` gave.

    Returns:
        The model, and the processor that `attach` was given.

    Raises:
        TypeError: the model is not attached, or is a part of one that is, or is something else.
    """
    check_model(model)
    if attachment_of(model) is None:
        raise TypeError(f"{type(model).__name__} is not attached")
    plain = plain_processor(model, processor)
    unpatch(model)
    if isinstance(model, PreTrainedModel):
        del model.config.qlip
    return model, plain  # type: ignore[return-value]


def check_model(model: object) -> None:
    """Raises TypeError unless `model` is a whole model, loaded."""
    if isinstance(model, nn.Module):
        return check_whole(model)
    what = repr(model) if model is None or isinstance(model, (str, type)) else f"a {type(model).__name__}"
    hint = "load it first, by its class's from_pretrained"
    if isinstance(model, (ProcessorMixin, PreTrainedTokenizerBase)):
        hint = "the model comes first, then its processor"
    elif isinstance(getattr(model, "model", None), nn.Module):
        hint = "give the model in it, its attribute `model`"
    raise TypeError(f"model is {what}; it must be one of {NAMES}, or a vision model such as CLIPVisionModel; {hint}")


def check_processor(processor: Any) -> None:
    """Raises TypeError unless `processor` is None or knows how pictures are normalised."""
    plain = getattr(processor, "image_processor", processor)
    if plain is not None and getattr(plain, "image_mean", None) is None:
        what = repr(plain) if isinstance(plain, (str, type)) else f"a {type(plain).__name__}"
        raise TypeError(
            f"processor is {what}; it must be the model's processor (AutoProcessor), or for a vision model its image"
            " processor (AutoImageProcessor), or None"
        )


def plain_processor(model: nn.Module, processor: Any) -> Any:
    """The processor that a model had before it was attached; any other as it is."""
    attachment = attachment_of(model)
    if isinstance(processor, QLIPImageProcessor) and attachment is not None:
        return attachment.plain_processor
    return detach_processor(processor)


def choose_settings(model: nn.Module, config: QLIPConfig | None, changes: Mapping[str, Any]) -> QLIPConfig:
    """The settings of `attach`: `changes` over `config`, over what the model's configuration says, over the defaults.

    Raises:
        FileNotFoundError: there is no MLP prior where they name one.
        TypeError: `config` is no QLIPConfig.
        ValueError: a setting is unknown or out of range.
    """
    if config is not None and not isinstance(config, QLIPConfig):
        raise TypeError(f"config is {config!r}; it must be a QLIPConfig; single settings are given by keyword")
    own = config
    if own is None:
        saved = getattr(getattr(model, "config", None), "qlip", None)  # no field of transformers' configurations
        own = QLIPConfig() if saved is None or isinstance(saved, bool) else QLIPConfig.from_dict(saved)
    chosen = QLIPConfig.from_dict({**own.to_dict(), **changes})
    if chosen.mlp is not None and isinstance(model, PreTrainedModel):
        beside = Path(model.config._name_or_path) / chosen.mlp  # the prior lies in the checkpoint's folder
        if beside.is_file():
            return replace(chosen, mlp=str(beside))
        if chosen.interpolation == "mlp" and not Path(chosen.mlp).is_file():
            raise FileNotFoundError(
                f"no MLP prior at {chosen.mlp}, nor at {beside}; a checkpoint of the hub is loaded without it: download"
                " the file and give its path as mlp=..."
            )
    return chosen


def find_tower(model: nn.Module) -> tuple[nn.Module, int | Sequence[int]]:
    """The vision model in a model, and which of its hidden states are used.

    Raises:
        TypeError: QLIP can't stand in this model.
    """
    if isinstance(model, LANGUAGE_MODELS):
        # VipLlava's configuration had a name of its own for it.
        name = "vision_feature_layers" if hasattr(model.config, "vision_feature_layers") else "vision_feature_layer"
        return model.model.vision_tower, getattr(model.config, name)
    if isinstance(model, CONTRASTIVE_MODELS):
        return model.vision_model, -1
    if (foreign := open_clip.find_tower(model)) is not None:
        return foreign, -1
    if hasattr(model, "get_base_model"):
        raise TypeError(f"{type(model).__name__} is wrapped by PEFT; attach the model in it, model.get_base_model()")
    if hasattr(model, "get_vision_tower"):
        raise TypeError(
            f"{type(model).__name__} is LLaVA's own class, which is not attached but loaded with QLIP inside:"
            f" llava.model.builder.load_pretrained_model(..., qlip=True). attach goes with {NAMES}"
        )
    if hasattr(getattr(model, "config", None), "vision_config"):
        reason = why_not(model) or "whether it takes a variable number of tokens is not known"
        raise TypeError(f"QLIP can't be attached to {type(model).__name__}: {reason}. It goes with {NAMES}")
    return model, -1


def check_tower(tower: nn.Module) -> None:
    """Raises unless leaves can be this tower's tokens."""
    attention = find_adapter(tower)(tower).attention
    if attention not in BIASABLE:
        raise ValueError(
            f"the vision tower's attention is {attention!r}, which takes no padding mask; load the model with"
            " attn_implementation={'vision_config': 'sdpa'}"
        )
    if any(parameter.is_meta for parameter in tower.parameters()):
        raise ValueError("the vision tower is offloaded; give it a device in device_map, it is small")


def check_language_model(model: Any, settings: QLIPConfig) -> None:
    """Raises unless the tower's tokens, positions and weights fit the language model around it."""
    has_cls = find_adapter(model.model.vision_tower).prefix > 0
    # VipLlava knows no strategy: it always drops the first token.
    strategy = getattr(model.config, "vision_feature_select_strategy", "default")
    if strategy != ("default" if has_cls else "full"):
        what = "keep [CLS], which has no place on the picture" if has_cls else "drop a patch, as there is no [CLS]"
        raise TypeError(f"vision_feature_select_strategy is {strategy!r}: it would {what}")
    text = model.config.get_text_config()
    rotary = any("Rotary" in type(module).__name__ for module in model.model.language_model.modules())
    if settings.llm_positions == "raster" and not rotary:
        raise TypeError(
            f"the language model {text.model_type!r} has no rotary positions, which places between whole numbers need;"
            " give llm_positions='sequential'"
        )
    biased = settings.biases_language_model
    if biased and text._attn_implementation not in BIASABLE:
        raise ValueError(
            f"llm_size_bias is {settings.llm_size_bias} and llm_weight {settings.llm_weight!r}, but the language"
            f" model's attention {text._attn_implementation!r} takes no bias; load it with 'sdpa' or 'eager', or give"
            " llm_size_bias=0"
        )
    if biased and getattr(text, "sliding_window", None) is not None:
        raise ValueError(
            f"the language model attends to a window of {text.sliding_window} tokens, which does not go with"
            " llm_size_bias and llm_weight; give llm_size_bias=0"
        )


def make_image_processor(vision: QLIPVisionModel, processor: Any) -> QLIPImageProcessor:
    """QLIP's image processor with the mean and standard deviation of the model's own."""
    plain = getattr(processor, "image_processor", processor)
    adapter = vision.adapter
    mean, std = adapter.normalisation if plain is None else (plain.image_mean, plain.image_std)
    ours = QLIPImageProcessor(adapter.patch_size, adapter.native_grid * adapter.patch_size, mean, std, vision.qlip)
    ours.plain = plain
    return ours


def join_processor(model: nn.Module, processor: Any, image_processor: QLIPImageProcessor) -> Any:
    """The processor that `attach` gives back.

    Raises:
        TypeError: a language model's processor is given that knows no text.
    """
    if isinstance(processor, ProcessorMixin):
        newline = hasattr(getattr(model, "model", None), "image_newline")
        return attach_processor(processor, image_processor, trailing_tokens=int(newline))
    if processor is not None and isinstance(model, LANGUAGE_MODELS):
        raise TypeError(
            f"the processor is a {type(processor).__name__}; {type(model).__name__} needs the one that holds both image"
            " processor and tokenizer (AutoProcessor)"
        )
    return image_processor
