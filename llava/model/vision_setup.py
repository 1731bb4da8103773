"""Adds a tower, a projector and image tokens to a text-only model, as training starts.

`args` is LLaVA's `ModelArguments`, or any object with its fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.config import check_merge_type
from llava.model.loading.files import load_tensors
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.qlip_encoder import check_flag
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.sharding import whole_parameters
from llava.model.vision.anyres import has_newline, make_newline

EMBEDDINGS = "model.embed_tokens.weight"
NEWLINE = "model.image_newline"
SETTINGS = ("mm_vision_select_layer", "mm_vision_select_feature", "qlip")
"""Fields of the arguments that are copied to the configuration if they exist."""


def initialize_vision_modules(model: Any, args: Any, fsdp: Any = None) -> None:
    """Adds the tower that the arguments name, loaded and frozen, and a projector to train.

    Args:
        model: a `LlavaMetaModel`; its configuration is updated.
        args: `vision_tower`, a folder or hub id; and, where it has them, `mm_vision_select_layer`,
            `mm_vision_select_feature`, `mm_projector_type` ("linear"), `mm_patch_merge_type` ("flat"), `qlip`, and
            `pretrain_mm_mlp_adapter`, a file with the projector's weights, and perhaps the newline of tiles;
            `vision_tower_dtype`, by default the model's; `cache_dir`, of the hub's files.
        fsdp: LLaVA's; if it is set, the tower is kept in a list: FSDP does not shard it, the model does not save it.

    Raises:
        ValueError: an unknown way of joining tiles, a file that holds another projector, or other settings than those
            of the tower and the projector that the model has already.
    """
    config = model.config
    tower = model.get_vision_tower()
    if tower is not None:
        check_own_parts(model, tower, args)
    config.mm_patch_merge_type = getattr(args, "mm_patch_merge_type", None) or "flat"
    if args.vision_tower is not None:
        config.mm_vision_tower = str(args.vision_tower)
    for name in SETTINGS:
        if hasattr(args, name) and not (name == "qlip" and args.qlip is None):
            setattr(config, name, getattr(args, name))
    check_merge_type(config)
    if tower is None:
        tower = build_vision_tower(config, delay_load=True)
        model.vision_tower = [tower] if fsdp else tower
    cache_dir = getattr(args, "cache_dir", None)
    hub = {} if cache_dir is None else {"cache_dir": cache_dir}
    tower.load_model(dtype=getattr(args, "vision_tower_dtype", None), **hub)

    config.use_mm_proj = True  # read by LLaVA, not by us
    config.mm_hidden_size = tower.hidden_size
    projector = getattr(model, "mm_projector", None)
    if projector is None:
        config.mm_projector_type = getattr(args, "mm_projector_type", "linear")
        projector = build_vision_projector(config)
    projector.requires_grad_(True)
    if has_newline(config) and getattr(model, "image_newline", None) is None:
        model.image_newline = make_newline(config, like=torch.empty(0, device=model.embed_tokens.weight.device))
    if (file := getattr(args, "pretrain_mm_mlp_adapter", None)) is not None:
        _load_projector(file, model, projector)
    model.mm_projector = projector


def _load_projector(file: Any, model: Any, projector: nn.Module) -> None:
    """Reads a file's weights into a projector, and into the newline of a model that has one.

    Raises:
        ValueError: the file holds another projector.
    """
    saved, config = _read(file), model.config
    state = {name.split("mm_projector.")[1]: tensor for name, tensor in saved.items() if "mm_projector." in name}
    if unlike := projector.state_dict().keys() ^ state.keys():
        raise ValueError(f"{file} is not a {config.mm_projector_type!r} projector: {sorted(unlike)[0]!r} differs")
    with whole_parameters(*projector.parameters()):
        for name, own in projector.state_dict().items():
            _check_shape(file, f"mm_projector.{name}", state[name], own)
        projector.load_state_dict(state)
    if has_newline(config) and NEWLINE in saved:
        with torch.no_grad(), whole_parameters(model.image_newline):
            _check_shape(file, NEWLINE, saved[NEWLINE], model.image_newline)
            model.image_newline.copy_(saved[NEWLINE])


def check_own_parts(model: Any, tower: VisionTower, args: Any) -> None:
    """Checks that arguments ask for the tower and the projector that a model has; both stay as they are.

    Raises:
        ValueError: they ask for others, which the configuration would name and the weights would not follow.
    """
    own = {"mm_vision_select_layer": tower.select_layer, "mm_vision_select_feature": tower.select_feature}
    if getattr(model, "mm_projector", None) is not None:
        own["mm_projector_type"] = model.config.mm_projector_type
    for name, value in own.items():
        if (given := getattr(args, name, value)) != value:
            raise ValueError(f"{name} is {given!r}, the model was loaded with {value!r}; give that, or leave it out")
    check_flag(tower, getattr(args, "qlip", None))


def initialize_vision_tokenizer(model: Any, args: Any, tokenizer: Any) -> None:
    """Adds the image tokens that the arguments ask for to the tokenizer, and their embeddings to the model.

    A new token's rows are the mean of the old rows. The vocabulary never shrinks.

    Args:
        model: a causal language model.
        args: `mm_use_im_patch_token`, `mm_use_im_start_end`; and, where it has them, `tune_mm_mlp_adapter`: only the
            input embeddings of <im_start> and <im_end> are trained, with the projector; and `pretrain_mm_mlp_adapter`:
            a file that may hold those embeddings.
        tokenizer: of the model.

    Raises:
        ValueError: the file's embeddings are not of these tokens.
    """
    patch = [DEFAULT_IMAGE_PATCH_TOKEN] if args.mm_use_im_patch_token else []
    ends = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if args.mm_use_im_start_end else []
    if not patch and not ends:
        return
    old = len(tokenizer)
    tokenizer.add_tokens([*patch, *ends], special_tokens=True)
    new = len(tokenizer) - old
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    given, output = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad(), whole_parameters(given.weight, output.weight):
        for table in (given.weight, output.weight):
            table[old : old + new] = table[:old].float().mean(0).to(table.dtype)
    if ends and new and (file := getattr(args, "pretrain_mm_mlp_adapter", None)) is not None:
        _copy_rows(given.weight, tokenizer.convert_tokens_to_ids(ends), file)
    if getattr(args, "tune_mm_mlp_adapter", False):
        given.weight.requires_grad_(bool(ends))
        output.weight.requires_grad_(False)


@torch.no_grad()
def _copy_rows(table: Tensor, rows: list[int], file: Any) -> None:
    """Copies the embeddings of some tokens from a file that holds only these, or the whole table."""
    saved = _read(file).get(EMBEDDINGS)
    if saved is None:
        raise ValueError(f"{file} holds no {EMBEDDINGS!r}, which mm_use_im_start_end needs")
    with whole_parameters(table):
        if saved.shape not in (table.shape, (len(rows), table.shape[1])):
            raise ValueError(
                f"{file}: {EMBEDDINGS} is {tuple(saved.shape)}; allowed are {tuple(table.shape)} and the"
                f" {len(rows)} new rows alone"
            )
        table[rows] = (saved[rows] if saved.shape == table.shape else saved).to(table)


def _check_shape(file: Any, name: str, given: Tensor, own: Tensor) -> None:
    """Raises ValueError if a file's tensor has another shape than the model's, as of another size of model."""
    if given.shape != own.shape:
        raise ValueError(f"{file}: {name} is {tuple(given.shape)}, the model's {tuple(own.shape)}")


def _read(file: Any) -> dict[str, Tensor]:
    return load_tensors(Path(file))
