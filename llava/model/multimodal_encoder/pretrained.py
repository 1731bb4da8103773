"""Configurations and image processors of pretrained vision models, read from files or inferred from weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from transformers import (
    AutoConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    PreTrainedConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from llava.model.field_types import check_sizes
from llava.model.loading.files import read_json

logger = logging.getLogger(__name__)

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "clip_vision_model": CLIPVisionConfig,
    "siglip_vision_model": SiglipVisionConfig,
}

# Pillow's resampling, whether or not torchvision is installed: the same pixels on every machine.
PROCESSORS: dict[str, Any] = {
    "clip_vision_model": CLIPImageProcessorPil,
    "siglip_vision_model": SiglipImageProcessorPil,
}

PROCESSOR_CLASSES = {
    "clip_vision_model": ("CLIP", "Llava", "LlavaNext", "QLIP"),
    "siglip_vision_model": ("Siglip", "Llava", "LlavaNext", "QLIP"),
}
"""Families whose image processors resize and normalise as the tower's own does, by fields of the same names. What else
they do to an image is left to LLaVA's code."""
PROCESSOR_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")

DTYPE_NAMES = ("dtype", "torch_dtype")
"""Today's and the former name of a configuration's dtype."""

OPENAI_CLIP = re.compile(
    r"""(.*[/\\])?
    (?:(?:models--)?openai[-_]+)?clip-vit-(?:base-patch32|base-patch16|large-patch14(?:-336)?)(?:-hf)?
    (?:[/\\](?:snapshots[/\\][^/\\]+[/\\]?)?)?
    | Lin-Chen/ShareGPT4V-.*vit-large336.*""",
    re.VERBOSE,
)
"""Names of the CLIPs that OpenAI released, of their copies and of models fine-tuned from them. Others have
other heads and activations, which the shapes do not show."""
CLIP_HEAD_WIDTH = 64  # in all of OpenAI's models
CLIP_LAYERS = {768: 12, 1024: 24}  # width of the model -> layers of OpenAI's
SIGLIP_HEAD_WIDTHS = {1152: 72, 1536: 96}  # width of the model -> of its heads: so400m, giant; others have CLIP's
SIGLIP_LAYERS = {768: 12, 1024: 24, 1152: 27, 1536: 40}  # width of the model -> layers of the published ones
UNEVEN_SIZES = {(27, 14): 384}  # (cells per side, patch size) -> pixels that are not whole cells: so400m-patch14-384


def vision_config(config: PreTrainedConfig | Mapping[str, Any]) -> PreTrainedConfig:
    """Extracts the vision part of a CLIP or SigLIP configuration, given as an object or a dict, whole or vision part.

    It has no dtype: a tower has the dtype of the model around it.

    Raises:
        ValueError: it is of another type, or a size is not positive.
    """
    values = dict(config if isinstance(config, Mapping) else config.to_dict())
    if "vision_config" in values:
        kind = values.get("model_type")
        values = {"model_type": f"{kind}_vision_model", **dict(values["vision_config"])}
    model_type = values.pop("model_type", None)
    if model_type not in CONFIGS:
        raise ValueError(f"the vision tower is of type {model_type!r}; allowed are {', '.join(CONFIGS)}")
    check_sizes(values)
    return CONFIGS[model_type](**{name: value for name, value in values.items() if name not in DTYPE_NAMES})


def read_vision_config(name: str, **hub: Any) -> PreTrainedConfig:
    """Reads the vision part of the configuration in a CLIP or SigLIP checkpoint.

    Args:
        name: folder or hub id, as in `mm_vision_tower`.
        **hub: `cache_dir`, `revision`, `token`, ...

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: its configuration is damaged, or of another type.
    """
    try:
        if (file := Path(name) / "config.json").is_file():
            return vision_config(read_json(file))
        return vision_config(AutoConfig.from_pretrained(name, **hub))
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"the vision tower {name!r} (mm_vision_tower) is neither a folder with a config.json nor a model id that "
            "the hub, or the local cache, gives"
        ) from error
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"the vision tower {name!r} (mm_vision_tower): {error}") from error


def fit_vision_config(config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> PreTrainedConfig:
    """Adapts a tower's published configuration to those of its weights that a LLaVA checkpoint holds.

    LLaVA-NeXT drops SigLIP's last layer and head.

    Args:
        config: changed in place, and returned.
        shapes: see `infer_vision_config`.

    Raises:
        ValueError: layers of a CLIP are missing.
    """
    published, config.num_hidden_layers = config.num_hidden_layers, count_layers(shapes)
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = "head.probe" in shapes
    else:
        check_depth(config, published)
    return config


def check_depth(config: PreTrainedConfig, published: int) -> None:
    """Raises ValueError if layers are missing, from whose end LLaVA counts the one that it reads."""
    if config.num_hidden_layers < published:
        raise ValueError(
            f"the checkpoint's vision tower has {config.num_hidden_layers} of {published} layers; download or convert"
            " the checkpoint again"
        )


def count_layers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Counts the layers of a vision model from the names of its weights."""
    return len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")})


def is_siglip(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the weights of a vision model are SigLIP's: CLIP's patches have no bias."""
    return "embeddings.patch_embedding.bias" in shapes


def infer_vision_config(shapes: Mapping[str, tuple[int, ...]]) -> CLIPVisionConfig | SiglipVisionConfig:
    """Infers the configuration of one of OpenAI's CLIPs, or of a SigLIP, from the weights in a LLaVA checkpoint.

    LLaVA-NeXT drops SigLIP's last layer and head; what is left is then the configuration.

    Args:
        shapes: shape of every tensor, by transformers' names ("embeddings.patch_embedding.weight", ...).

    Raises:
        ValueError: the tensors are those of neither CLIP nor SigLIP, or layers of a CLIP are missing.
    """
    siglip = is_siglip(shapes)
    kind = "SigLIP" if siglip else "CLIP"
    try:
        width, channels, patch_size, _ = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as missing:
        raise ValueError(f"the checkpoint's vision tower is not a {kind} vision model: it has no {missing}") from None
    has_cls = "embeddings.class_embedding" in shapes
    head = SIGLIP_HEAD_WIDTHS.get(width, CLIP_HEAD_WIDTH) if siglip else CLIP_HEAD_WIDTH
    side = round(max(0, positions - has_cls) ** 0.5)
    if has_cls == siglip or side**2 + has_cls != positions or width % head:
        raise ValueError(
            f"the checkpoint's vision tower has {positions} positions of width {width}, with{'' if has_cls else 'out'}"
            f" [CLS]: not a {kind} that can be recognised by its weights; set mm_vision_config in config.json"
        )
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": count_layers(shapes),
        "num_attention_heads": width // head,
        "num_channels": channels,
        "patch_size": patch_size,
    }
    pixels = side * patch_size
    if not siglip:
        config = CLIPVisionConfig(**sizes, image_size=pixels, hidden_act="quick_gelu")
        check_depth(config, CLIP_LAYERS.get(width, 0))
        return config
    pixels = UNEVEN_SIZES.get((side, patch_size), pixels)
    return SiglipVisionConfig(**sizes, image_size=pixels, vision_use_head="head.probe" in shapes)


def drops_last_layer(config: PreTrainedConfig) -> bool:
    """Whether a SigLIP lacks its head and the layer below it, as in LLaVA-NeXT's checkpoints.

    For a width that no published SigLIP has, a model without a head is assumed to lack that layer.
    """
    if config.model_type != "siglip_vision_model" or getattr(config, "vision_use_head", True):
        return False
    layers = SIGLIP_LAYERS.get(config.hidden_size)
    return layers is None or config.num_hidden_layers < layers


def check_select_feature(feature: str, config: PreTrainedConfig) -> None:
    """Raises ValueError if [CLS] is asked for (`mm_vision_select_feature`) of a tower that has none."""
    if feature == "cls_patch" and config.model_type == "siglip_vision_model":
        raise ValueError("mm_vision_select_feature is 'cls_patch', but SigLIP has no [CLS]; set 'patch'")


def check_select_layer(layer: int, config: PreTrainedConfig, name: str = "mm_vision_select_layer") -> None:
    """Raises ValueError if a tower has no hidden state of this number, given as the field `name`."""
    depth = config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer!r}; {depth} layers have -{depth + 1} to {depth}")


def default_image_processor(config: PreTrainedConfig) -> Any:
    """Builds the image processor that a vision model of this configuration was trained with."""
    square = {"height": config.image_size, "width": config.image_size}
    if config.model_type == "siglip_vision_model":
        return SiglipImageProcessorPil(size=square)
    return CLIPImageProcessorPil(size={"shortest_edge": config.image_size}, crop_size=square)


def holds_image_processor(folder: Path) -> bool:
    """Whether a folder describes an image processor: in its own file, or, as by transformers 5, in its processor's.

    Raises:
        ValueError: one of these files is damaged.
    """
    own, whole = (folder / name for name in ("preprocessor_config.json", "processor_config.json"))
    if own.is_file():
        read_json(own)  # names the file if it is damaged
        return True
    return whole.is_file() and "image_processor" in read_json(whole)


def load_image_processor(name: str, config: PreTrainedConfig, **hub: Any) -> Any:
    """Loads the image processor in a folder or hub repository for a vision model of this configuration.

    Raises:
        ValueError: a damaged file, or an image processor of a class that prepares images otherwise.
    """
    holds_image_processor(Path(name))  # names a damaged file
    processor = PROCESSORS[config.model_type].from_pretrained(name, **hub)
    values, _ = processor.get_image_processor_dict(name, **hub)
    check_processor_class(name, values, processor, config)
    return processor


def check_processor_class(name: str, values: Mapping[str, Any], processor: Any, config: PreTrainedConfig) -> None:
    """Checks that an image processor's class prepares images as `processor`, which holds its values, does.

    An unknown class only gives a warning if its values are those that the tower was trained with.

    Raises:
        ValueError: the class is unknown, and its values differ from those.
    """
    found = values.get("image_processor_type", values.get("feature_extractor_type"))
    families = PROCESSOR_CLASSES[config.model_type]
    if found is None or found in [family + ending for family in families for ending in PROCESSOR_ENDINGS]:
        return
    ours, default = (_without_type(one) for one in (processor, default_image_processor(config)))
    text = f"{name}: the image processor is of class {found!r} (preprocessor_config.json or processor_config.json)"
    if ours == default:
        logger.warning("%s, which is not known; images are prepared by %s's", text, families[0])
        return
    other = sorted(field for field in {*ours, *default} if ours.get(field) != default.get(field))
    allowed = ", ".join(f"{family}ImageProcessor" for family in families)
    raise ValueError(
        f"{text}; allowed for this tower are {allowed}, and others with the tower's own values, but"
        f" {', '.join(other)} differ. If it resizes and normalises as one of these, name that class in the file"
    )


def _without_type(processor: Any) -> dict[str, Any]:
    values = {field: value for field, value in processor.to_dict().items() if field != "image_processor_type"}
    return {field: list(value) if isinstance(value, tuple) else value for field, value in values.items()}


def find_image_processor(folder: Path, config: PreTrainedConfig) -> Any:
    """Loads a folder's image processor; where it holds none, builds the default one."""
    held = holds_image_processor(folder)
    return load_image_processor(str(folder), config) if held else default_image_processor(config)


def set_own_processor(tower: Any, folders: Iterable[Path]) -> None:
    """Gives a tower the image processor in the first of these folders that has one; without any, it keeps its own."""
    if folder := next(filter(holds_image_processor, folders), None):
        tower.set_image_processor(load_image_processor(str(folder), tower.config))
