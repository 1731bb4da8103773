"""LLaVA's helpers between images, text and tensors: image preparation, image tokens in prompts, model names.

Importing it loads Pillow; torch and transformers are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.image_geometry import (
    WidthHeight,
    divide_to_patches,
    encode_image_to_base64,
    expand2square,
    find_padding,
    is_anyres,
    read_pinpoints,
    resize_and_pad_image,
    resize_padded,
    select_best_resolution,
)
from llava.text import check_encodable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from llava.images import load_image_from_base64
    from llava.stopping import KeywordsStoppingCriteria

# LLaVA's clients look for all of these here.
__all__ = [
    "KeywordsStoppingCriteria",
    "divide_to_patches",
    "encode_image_to_base64",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image_from_base64",
    "process_anyres_image",
    "process_images",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
    "unpad_image",
]


def __getattr__(name: str) -> Any:
    """Loads the names that need numpy or transformers when they are first used."""
    if name == "KeywordsStoppingCriteria":
        from llava.stopping import KeywordsStoppingCriteria

        return KeywordsStoppingCriteria
    if name == "load_image_from_base64":
        from llava.images import load_image_from_base64

        return load_image_from_base64
    raise AttributeError(f"module 'llava.mm_utils' has no attribute {name!r}")


def get_anyres_image_grid_shape(
    image_size: WidthHeight, grid_pinpoints: str | Sequence[WidthHeight], patch_size: int
) -> tuple[int, int]:
    """Computes (columns, rows) of the tiles that `process_anyres_image` cuts, `patch_size` pixels wide and high."""
    width, height = select_best_resolution(image_size, read_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[WidthHeight]) -> Tensor:
    """Prepares an image as LLaVA-1.6 does: the whole image, squeezed, then its tiles.

    Args:
        image: The image.
        processor: A CLIP or SigLIP image processor of square images.
        grid_pinpoints: Resolutions to choose from, see `read_pinpoints`.

    Returns:
        Float tensor (1 + tiles, channels, height, width).

    Raises:
        ValueError: see `read_pinpoints`.
    """
    import torch

    from qlip.images.rgb import to_rgb

    image = to_rgb(image, upright=False)
    side, tile = _square_side(processor.size), find_tile_side(processor)
    best = select_best_resolution(image.size, read_pinpoints(grid_pinpoints, tile))
    tiles = divide_to_patches(resize_and_pad_image(image, best), tile)
    return torch.stack([_pixels(part, processor) for part in [image.resize((side, side)), *tiles]])


def find_tile_side(processor: Any) -> int:
    """Finds the side in pixels of the tiles that a CLIP or SigLIP image processor prepares."""
    crop = getattr(processor, "crop_size", None)  # SigLIP's processor has none: it resizes to a square
    return _square_side(processor.size) if crop is None else crop["height"]


def _padded_pixels(image: Image.Image, processor: Any) -> Tensor:
    """Pads an RGB image to a square with the processor's mean colour and prepares it."""
    red, green, blue = (int(255 * mean) for mean in processor.image_mean)
    background = red, green, blue
    size, resample = getattr(processor, "size", None), getattr(processor, "resample", None)
    side = _square_side(size) if getattr(processor, "do_resize", False) and resample is not None else None
    if side is None:  # a custom processor, which resizes in its own way
        return _pixels(expand2square(image, background), processor)
    return _pixels(resize_padded(image, background, side, int(resample)), processor)


def _square_side(size: Any) -> int | None:
    """Finds the side that a processor resizes square images to; None where its `size` does not say."""
    if not hasattr(size, "get"):  # a dict, or transformers' SizeDict, which is none
        return None
    height, width = size.get("height"), size.get("width")
    return size.get("shortest_edge") or (height if height == width else None)


def unpad_image(tensor: Tensor, original_size: WidthHeight) -> Tensor:
    """Crops the padding from an image of `original_size` (width, height) that was fitted into (C, H, W)."""
    height, width = tensor.shape[1:]
    side, above = find_padding((width, height), original_size)
    return tensor[:, above : height - above, side : width - side]


class ImageList(list["Tensor"]):
    """Images of several sizes, moved and converted like the one tensor that images of one size make."""

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """`Tensor.to` of each image."""
        return ImageList(image.to(*args, **kwargs) for image in self)

    def half(self) -> ImageList:
        """Each image in float16."""
        return ImageList(image.half() for image in self)

    def cuda(self, device: Any = None) -> ImageList:
        """Each image on a GPU."""
        return self.to("cuda" if device is None else device)


def _pixels(image: Image.Image, image_processor: Any) -> Tensor:
    return image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Tensor | ImageList:
    """Turns images into what the vision tower takes.

    Every way of preparing converts them alike: they stay turned as they are, so that `image_sizes` are their `size`
    (`llava.images.load_image` opens files upright); transparency is laid on white, 16-bit grey is scaled to 8 bits.

    Args:
        images: Pillow images of any mode, or arrays or tensors of pixels as `QLIPImageProcessor.preprocess` takes them.
        image_processor: A `CLIPImageProcessor`, or one that has `keeps_aspect_ratio` set and gets unpadded images.
        model_cfg: An object or a mapping that may have `image_aspect_ratio` ("pad"; "anyres" or "anyres_max_N";
            otherwise the processor's own way) and, for anyres, `image_grid_pinpoints`.

    Returns:
        Float tensor (images, channels, height, width), for anyres (images, 1 + tiles, channels, height, width), when
        all shapes agree; otherwise a list, which has `to` and `half` as a tensor has.

    Raises:
        TypeError: one image in place of a list, something that is no image, or no image processor.
        ValueError: floats outside of [0, 1], an array of another shape, or see `read_pinpoints`.
    """
    import torch
    from PIL import Image

    if image_processor is None:
        raise TypeError("image_processor is None, as that of a text-only model is; images need a model with a tower")
    if isinstance(images, Image.Image | str | bytes | Path) or getattr(images, "ndim", 4) < 4:
        raise TypeError("images is one image; it must be a list: process_images([image], ...)")
    aspect_ratio = _read_setting(model_cfg, "image_aspect_ratio")
    cuts_tiles = is_anyres(aspect_ratio) and getattr(image_processor, "takes_tiles", False)
    keeps_shape = getattr(image_processor, "keeps_aspect_ratio", False) and not cuts_tiles
    pads, tiles = not keeps_shape and aspect_ratio == "pad", not keeps_shape and is_anyres(aspect_ratio)
    pictures = _read_pictures(images, keeps_arrays=not (keeps_shape or pads or tiles))
    if pads:
        tensors = [_padded_pixels(picture, image_processor) for picture in pictures]
    elif tiles:
        pinpoints = _read_setting(model_cfg, "image_grid_pinpoints")
        tensors = [process_anyres_image(picture, image_processor, pinpoints) for picture in pictures]
    else:
        tensors = [_pixels(picture, image_processor) for picture in pictures]
    same_shape = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if same_shape else ImageList(tensors)


def _read_setting(model_cfg: Any, name: str) -> Any:
    """Reads a setting of a model; None where it is missing, as in clients' namespaces."""
    return model_cfg.get(name) if isinstance(model_cfg, Mapping) else getattr(model_cfg, name, None)


def _read_pictures(images: Any, keeps_arrays: bool = False) -> list[Any]:
    """Converts images to RGB, turned as they are.

    Args:
        images: Pillow images or arrays.
        keeps_arrays: leave arrays to the processor, which takes any range of values.

    Raises:
        TypeError: something is no image.
        ValueError: see `to_pillow`.
    """
    from PIL import Image

    from qlip.images.arrays import to_pillow
    from qlip.images.rgb import to_rgb

    pictures = []
    for number, image in enumerate(images):
        is_array = hasattr(image, "ndim")
        if not isinstance(image, Image.Image) and not is_array:
            kind = type(image).__name__
            raise TypeError(f"images[{number}] is a {kind}; open it with llava.images.load_image, which takes files")
        pictures.append(image if is_array and keeps_arrays else to_rgb(to_pillow(image), upright=False))
    return pictures


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Tokenizes a prompt, with `image_token_index` in place of every `<image>`.

    Args:
        prompt: Text with any number of `<image>`.
        tokenizer: Called on the pieces between; a leading BOS is kept once.
        image_token_index: The id that marks an image.
        return_tensors: None for a list, "pt" for an int64 tensor (length,).

    Raises:
        ValueError: for any other `return_tensors`, or a prompt that contains a lone surrogate.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    check_encodable("the prompt", prompt)
    pieces = [tokenizer(piece).input_ids for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    has_bos = bos is not None and pieces[0][:1] == [bos]
    ids = [bos] if has_bos else []
    for i, piece in enumerate(pieces):
        if i > 0:
            ids.append(image_token_index)
        extra = 0
        if has_bos and piece[:1] == [bos]:
            # Llama 3's tokenizer adds a BOS, and its chat template writes one: a prompt from there has two.
            extra = 2 if i == 0 and piece[1:2] == [bos] else 1
        ids.extend(piece[extra:])
    if return_tensors is None:
        return ids
    import torch

    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str) -> str:
    """Finds a model's name: that of the last folder.

    For a `checkpoint-N` folder its parent's name comes first. A folder of the hub's local cache,
    `models--OWNER--NAME/snapshots/COMMIT`, has the NAME, and `.` that of the folder that it is.
    """
    if Path(model_path).name in ("", ".."):  # "." and ".." name no folder
        model_path = str(Path(model_path).resolve())
    parts = str(model_path).replace("\\", "/").strip("/").split("/")  # Windows' paths, too
    cached = parts[-3] if len(parts) > 2 and parts[-2] == "snapshots" else ""
    if cached.startswith("models--"):
        return cached.split("--")[-1]
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]
