"""Checkpoints in LLaVA's own format and in transformers': writes either from the other.

Tensors are renamed, file by file, never computed with; only a vocabulary without <image> gets one row more, whose logit
can never be the largest. What the other format has no place for goes to the folder `original`, so that the way back
restores every file's tensors, names and settings exactly.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    LlavaImageProcessorPil,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
)
from transformers import LlavaConfig as TransformersConfig

from llava.command import check_new_folder, written_whole
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)
from llava.conversation import conv_templates
from llava.image_geometry import read_pinpoints
from llava.model.builder import load_pretrained_model
from llava.model.config import TEXT_CONFIGS, LlavaMptConfig, MultimodalConfig, with_old_names
from llava.model.generation_settings import drop_unused
from llava.model.loading.chat_template import default_template, keep_template
from llava.model.loading.checkpoint import Checkpoint, inspect
from llava.model.loading.files import weight_shapes
from llava.model.loading.folder import local_folder
from llava.model.loading.quantization import refuse_quantised
from llava.model.loading.tokenizer import load_tokenizer
from llava.model.loading.transformers_format import KEPT_FIELDS, TRANSFORMERS_NAMES
from llava.model.loading.weights import MODELS
from llava.model.multimodal_encoder.pretrained import find_image_processor
from llava.model.vision.quadtree_tiles import has_tiles
from scripts.chat_template import chat_template
from scripts.checkpoints.original_files import ORIGINAL, copy_prior, keep_original, restore
from scripts.checkpoints.weight_files import (
    HEAD,
    LLAVA_FILE_NAMES,
    TRANSFORMERS_FILE_NAMES,
    dtype_of_files,
    renamed,
    rewrite,
)

Format = Literal["llava", "transformers"]

KNOWN_TOWER = "openai/clip-vit-large-patch14-336"


def convert(model_path: str, out: Path, model_base: str | None = None) -> Format:
    """Writes a checkpoint in the other format.

    Args:
        model_path: folder or hub id, of either format.
        out: folder to write; must be empty or absent. It stays so until everything is written.
        model_base: the language model under a projector-only or LoRA checkpoint, which is merged. A vision tower that
            is stored elsewhere is merged too.

    Returns:
        The format written.

    Raises:
        FileExistsError: `out` is not empty.
        ValueError: the checkpoint is incomplete, or has parts that the other format has no place for.
    """
    check_new_folder(out)
    checkpoint = inspect(local_folder(model_path))
    if checkpoint.kind != "full" and model_base is None:
        raise ValueError(f"{model_path} is a {checkpoint.kind} checkpoint: give its language model as --model-base")
    if checkpoint.kind == "full" and model_base is not None:
        raise ValueError(f"{model_path} has all weights: there is nothing to merge with --model-base {model_base}")
    keep_template(model_path, checkpoint.config)
    if checkpoint.kind == "full" and checkpoint.config.mm_vision_config is not None:
        return convert_whole(checkpoint, out)
    with tempfile.TemporaryDirectory() as merged:
        merge(model_path, model_base, checkpoint.config.conv_mode, Path(merged))
        return convert_whole(inspect(Path(merged)), out)


def convert_whole(checkpoint: Checkpoint, out: Path) -> Format:
    """Writes a checkpoint that has all weights in the other format; see `convert`."""
    target: Format = "llava" if checkpoint.names is TRANSFORMERS_NAMES else "transformers"
    restored = (checkpoint.folder / ORIGINAL / "config.json").is_file()
    if not restored:
        check_convertible(checkpoint)
    write_format = write_transformers if target == "transformers" else write_llava
    with written_whole(out) as folder:
        if restored:
            restore(checkpoint, folder)
        else:
            write_format(checkpoint, folder)
            copy_prior(checkpoint, folder)
            keep_original(checkpoint, folder)
    return target


def merge(model_path: str, model_base: str | None, conv_mode: str | None, out: Path) -> None:
    """Writes a checkpoint in LLaVA's format together with what it lacks: its language model, its vision tower.

    In the dtype of the language model's files.

    Raises:
        ValueError: it is a text-only model, or its weights are quantised.
    """
    language_model = local_folder(model_base or model_path)
    refuse_quantised(language_model)
    dtype = dtype_of_files(language_model)
    tokenizer, model, processor, _ = load_pretrained_model(model_path, model_base, device="cpu", dtype=dtype)
    if processor is None:
        raise ValueError(f"{model_path} has no vision tower, so it is not a LLaVA checkpoint")
    model.config.conv_mode = conv_mode
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def check_convertible(checkpoint: Checkpoint) -> None:
    """Raises unless the files hold every weight of the model, and its configuration says what the formats know."""
    config = checkpoint.config
    refuse_quantised(checkpoint.folder)
    if isinstance(config, LlavaMptConfig):
        raise ValueError(
            "the language model is MPT, whose embeddings transformers' Llava can't tie; use LLaVA's format"
        )
    if config.mm_projector_type != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type is {config.mm_projector_type!r}; transformers' format has 'mlp2x_gelu'")
    if config.s2:
        raise ValueError("s2 is set; transformers' format has no tower at several scales")
    tiling = (config.image_aspect_ratio, config.mm_patch_merge_type)
    if has_tiles(config) and tiling != ("anyres", "spatial_unpad"):
        raise ValueError(f"tiles are {tiling[0]!r}, {tiling[1]!r}; transformers' format has 'anyres', 'spatial_unpad'")
    if config.conv_mode is not None and config.conv_mode not in conv_templates:
        raise ValueError(f"conv_mode is {config.conv_mode!r}; allowed are {', '.join(sorted(conv_templates))}")
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in MODELS[type(config)](config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop(HEAD, None)
    found = {renamed(name, checkpoint.names): tuple(s) for name, s in weight_shapes(checkpoint.folder, "").items()}
    if missing := wanted.keys() - found.keys():
        raise ValueError(f"{checkpoint.folder} lacks {len(missing)} weights, for example {min(missing)!r}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{checkpoint.folder}: {name} has the shape {found[name]}; config.json asks for {shape}")


def write_transformers(checkpoint: Checkpoint, out: Path) -> None:
    """Writes configuration, weights and processor of LlavaForConditionalGeneration, for tiles LlavaNext's."""
    config = checkpoint.config
    tokenizer = load_tokenizer(checkpoint.folder)
    start, end = (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN) if config.mm_use_im_start_end else ("", "")
    patch = DEFAULT_IMAGE_PATCH_TOKEN if config.mm_use_im_patch_token else ""
    image_tokens = [token for token in (patch, start, end, DEFAULT_IMAGE_TOKEN) if token]
    tokenizer.add_tokens(image_tokens, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # saved from the latter
    vision = dict(config.mm_vision_config)
    has_cls = vision["model_type"] == "clip_vision_model"
    keeps_all = not has_cls or config.mm_vision_select_feature == "cls_patch"
    rows = max(config.vocab_size, 1 + max(tokenizer.convert_tokens_to_ids(image_tokens)))
    kind = next(name for name, config_class in TEXT_CONFIGS.items() if config_class is type(config))
    own = set(AutoConfig.for_model(kind).to_dict()) - {"architectures", "dtype", "transformers_version"}
    text = {name: value for name, value in config.to_dict().items() if name in own}
    tiles = has_tiles(config)
    settings = (LlavaNextConfig if tiles else TransformersConfig)(
        text_config={**text, "model_type": kind, "vocab_size": rows},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN),
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=config.mm_vision_select_layer,
        vision_feature_select_strategy="full" if keeps_all else "default",
        tie_word_embeddings=config.tie_word_embeddings,
        architectures=["LlavaNextForConditionalGeneration" if tiles else "LlavaForConditionalGeneration"],
        dtype=config.dtype,
        **({"image_grid_pinpoints": resolutions(config)} if tiles else {}),
    )
    for name in (*KEPT_FIELDS, *(() if tiles else ("image_aspect_ratio",))):
        if (value := getattr(config, name)) is not None or name == "image_aspect_ratio":
            setattr(settings, name, value)
    values = with_old_names(json.loads(settings.to_json_string()))
    values["text_config"] = with_old_names(values["text_config"])
    (out / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    generation = checkpoint.folder / "generation_config.json"
    generated = GenerationConfig.from_pretrained(checkpoint.folder) if generation.is_file() else GenerationConfig()
    for name in ("bos_token_id", "eos_token_id"):  # its own may be several, of which config.json names one
        if getattr(generated, name) is None:
            setattr(generated, name, getattr(config, name))
    generated.pad_token_id = tokenizer.pad_token_id
    drop_unused(generated).save_pretrained(out)
    processor = (LlavaNextProcessor if tiles else LlavaProcessor)(
        image_processor=image_processor(checkpoint),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        num_additional_image_tokens=int(has_cls),
        chat_template=chat_template(config.conv_mode or default_template(config), f"{start}{DEFAULT_IMAGE_TOKEN}{end}"),
    )
    processor.save_pretrained(out)
    rewrite(checkpoint, out, TRANSFORMERS_FILE_NAMES, rows)


def image_processor(checkpoint: Checkpoint) -> Any:
    """Builds transformers' image processor that prepares images as LLaVA does: padded to a square, or cut in tiles."""
    vision = TransformersConfig(vision_config=checkpoint.config.mm_vision_config).vision_config
    plain = find_image_processor(checkpoint.folder, vision)
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "do_center_crop", "do_resize")
    own = {name: getattr(plain, name) for name in names}
    if has_tiles(checkpoint.config):
        return LlavaNextImageProcessorPil(image_grid_pinpoints=resolutions(checkpoint.config), **own)
    return LlavaImageProcessorPil(do_pad=True, **own) if checkpoint.config.image_aspect_ratio == "pad" else plain


def resolutions(config: MultimodalConfig) -> list[list[int]]:
    """Lists a configuration's resolutions as transformers has them, (height, width)."""
    read = read_pinpoints(config.image_grid_pinpoints, config.mm_vision_config["image_size"])
    return [[height, width] for width, height in read]


def write_llava(checkpoint: Checkpoint, out: Path) -> None:
    """Writes configuration, weights, tokenizer and image processor in LLaVA's format."""
    config, vision = checkpoint.config, dict(checkpoint.config.mm_vision_config)
    shape = (vision["model_type"], vision["hidden_size"], vision["image_size"], vision["patch_size"])
    config.mm_vision_tower = KNOWN_TOWER if shape == ("clip_vision_model", 1024, 336, 14) else "."
    config.architectures = [MODELS[type(config)].__name__]
    config.save_pretrained(out)
    tokenizer = load_tokenizer(checkpoint.folder)
    tokenizer.save_pretrained(out)
    vision_config = TransformersConfig(vision_config=vision).vision_config
    find_image_processor(checkpoint.folder, vision_config).save_pretrained(out)
    if (generation := checkpoint.folder / "generation_config.json").is_file():
        shutil.copy(generation, out)
    rewrite(checkpoint, out, LLAVA_FILE_NAMES, config.vocab_size)
