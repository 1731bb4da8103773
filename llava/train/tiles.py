"""How training prepares images: flags and a checkpoint's settings on aspect ratio and tiles, brought together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from llava.image_geometry import is_anyres, read_pinpoints
from llava.model.config import MultimodalConfig, check_tiling
from llava.model.vision.anyres import joins_tiles
from llava.train.arguments import ParsedArguments
from llava.train.checks import is_supported_aspect_ratio


def keep_aspect_ratio(args: ParsedArguments, config: MultimodalConfig) -> None:
    """Keeps a checkpoint's aspect ratio without the flag, if it has tiles, or a quadtree, which does not read it."""
    has_quadtree = config.qlip if args.model.qlip is None else args.model.qlip
    is_free = config.has_tower and "image_aspect_ratio" not in args.given
    if (
        is_free
        and (has_quadtree or is_anyres(config.image_aspect_ratio))
        and is_supported_aspect_ratio(config.image_aspect_ratio)
    ):
        args.data.image_aspect_ratio = config.image_aspect_ratio


def choose_tiles(args: ParsedArguments, config: MultimodalConfig, vision: SimpleNamespace | None) -> None:
    """Brings a configuration in line with the flags on tiles, before a tower is built.

    Raises:
        ValueError: there are no tiles to join, or their resolutions are missing.
    """
    if vision is None:
        return
    config.image_aspect_ratio, config.mm_patch_merge_type = args.data.image_aspect_ratio, vision.mm_patch_merge_type
    if args.data.image_grid_pinpoints is not None:
        config.image_grid_pinpoints = args.data.image_grid_pinpoints
    check_tiling(config)
    if joins_tiles(config) and not is_anyres(config.image_aspect_ratio):
        raise ValueError(
            f"--mm_patch_merge_type {config.mm_patch_merge_type} joins tiles, which --image_aspect_ratio"
            f" {config.image_aspect_ratio} does not cut; give anyres there, or flat here"
        )


def record_tiles(model: Any, args: ParsedArguments) -> None:
    """Writes into the configuration how images are prepared, resolutions in pixels.

    Raises:
        ValueError: a resolution is not a multiple of the tower's.
    """
    config, tower = model.config, model.get_vision_tower()
    config.image_aspect_ratio = args.data.image_aspect_ratio
    if tower is not None and is_anyres(config.image_aspect_ratio):
        read = read_pinpoints(config.image_grid_pinpoints, tower.config.image_size)
        config.image_grid_pinpoints = [list(resolution) for resolution in read]
