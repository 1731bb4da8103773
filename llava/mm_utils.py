"""Between pictures, text and tensors: image preparation, image tokens in prompts, stop keywords.

It prepares inputs as LLaVA's checkpoints expect them. It knows image processors and tokenizers by their calls only, and
nothing of models; opening files is left to `llava.images`.
"""

from __future__ import annotations

import ast
import base64
import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.images import load_image_from_base64 as load_image_from_base64  # LLaVA's clients look for it here

Size = tuple[int, int]  # (width, height) in pixels, as Pillow and LLaVA's configs give it

_CHAT_PADDING = (122, 116, 104)  # CLIP's mean colour
_BAND_PIXELS = 4_000_000
CHAT_SHORT, CHAT_LONG = 672, 1344  # pixels


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Returns the (width, height) that keeps most of a picture's pixels, and of those the one that wastes least."""

    def kept_and_wasted(resolution: Size) -> tuple[int, int]:
        (width, height), (original_width, original_height) = resolution, original_size
        scale = min(width / original_width, height / original_height)
        kept = min(int(original_width * scale) * int(original_height * scale), original_width * original_height)
        return kept, kept - width * height

    width, height = max(possible_resolutions, key=kept_and_wasted)
    return width, height


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fits a picture into `target_resolution` (width, height), keeping its shape, centred on black."""
    width, height = target_resolution
    scale = min(width / image.width, height / image.height)
    new_size = min(math.ceil(image.width * scale), width), min(math.ceil(image.height * scale), height)
    padded = Image.new("RGB", (width, height))
    padded.paste(image.resize(new_size), ((width - new_size[0]) // 2, (height - new_size[1]) // 2))
    return padded


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts a picture into squares of `patch_size` pixels, in raster order."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


def _resolutions(grid_pinpoints: str | Sequence[Size]) -> Sequence[Size]:
    return ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Size], patch_size: int
) -> tuple[int, int]:
    """Returns (columns, rows) of the tiles that `process_anyres_image` cuts, each `patch_size` pixels wide and high."""
    width, height = select_best_resolution(image_size, _resolutions(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[Size]) -> Tensor:
    """Prepares a picture as LLaVA-1.6 does: the whole of it, squeezed, then its tiles.

    Args:
        image: The picture.
        processor: A `CLIPImageProcessor`.
        grid_pinpoints: Resolutions (width, height) to choose from, or the text of such a list.

    Returns:
        Float tensor (1 + tiles, channels, height, width).
    """
    best = select_best_resolution(image.size, _resolutions(grid_pinpoints))
    tiles = divide_to_patches(resize_and_pad_image(image, best), processor.crop_size["height"])
    side = processor.size["shortest_edge"]
    return torch.stack([_pixels(tile, processor) for tile in [image.resize((side, side)), *tiles]])


def expand2square(pil_img: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """Pads a picture to a square of its longer side, centred on `background_color`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def resize_padded(image: Image.Image, background: tuple[int, int, int], side: int, resample: int) -> Image.Image:
    """Computes `expand2square(image, background).resize((side, side), resample)` without the square.

    The square of a long strip takes gigabytes. Pillow resizes rows first and columns then, and rounds in between, so
    that the padding above and below can be added between the two, and that on the sides to some rows at a time. The
    result is equal to the pixel; for an image more than eight times as tall as wide, to one level of 255.
    """
    width, height = image.size
    rows = Image.new("RGB", (side, max(width, height)), background)
    if width >= height:
        rows.paste(image.resize((side, height), resample), (0, (width - height) // 2))
        return rows.resize((side, side), resample)
    first, last, start, stop, box = 0, side, 0, height, (0.0, float(height))
    left, scale = (height - width) // 2, height / side
    if height > 8 * width:  # most of each row is padding: only what the image reaches is computed
        reach = 3 * max(scale, 1.0) + 2  # pixels; the widest filter, Lanczos, has a radius of three
        first, last = max(0, int((left - reach) / scale)), min(side, int((left + width + reach) / scale) + 1)
        start, stop = max(0, int(first * scale - reach)), min(height, int(last * scale + reach) + 1)
        box = first * scale - start, min(last * scale, height) - start
    step = max(1, _BAND_PIXELS // (stop - start))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        band = Image.new("RGB", (stop - start, bottom - top), background)
        band.paste(image.crop((0, top, width, bottom)), (left - start, 0))
        resized = band.resize((last - first, bottom - top), resample, (box[0], 0, box[1], bottom - top))
        rows.paste(resized, (first, top))
    return rows.resize((side, side), resample)


def _padded_pixels(image: Image.Image, processor: Any) -> Tensor:
    """A picture on a square of the processor's mean colour, prepared by the processor."""
    red, green, blue = (int(255 * mean) for mean in processor.image_mean)
    image, background = image if image.mode == "RGB" else image.convert("RGB"), (red, green, blue)
    size, resample = getattr(processor, "size", None), getattr(processor, "resample", None)
    side = _square_side(size) if getattr(processor, "do_resize", False) and resample is not None else None
    if side is None:  # a processor of somebody's own, which resizes in its own way
        return _pixels(expand2square(image, background), processor)
    return _pixels(resize_padded(image, background, side, int(resample)), processor)


def _square_side(size: Any) -> int | None:
    """The side that a processor resizes square pictures to; None where its `size` does not say."""
    if not hasattr(size, "get"):  # a dict, or transformers' SizeDict, which is none
        return None
    height, width = size.get("height"), size.get("width")
    return size.get("shortest_edge") or (height if height == width else None)


def unpad_image(tensor: Tensor, original_size: Size) -> Tensor:
    """Cuts off what padding added to a picture of `original_size` (width, height) that was fitted into (C, H, W)."""
    height, width = tensor.shape[1:]
    original_width, original_height = original_size
    if original_width * height > original_height * width:  # wider than the frame: padded above and below
        padding = (height - original_height * width // original_width) // 2
        return tensor[:, padding : height - padding, :]
    padding = (width - original_width * height // original_height) // 2
    return tensor[:, :, padding : width - padding]


class ImageList(list[Tensor]):
    """Pictures of several sizes, moved and converted like the one tensor that pictures of one size make."""

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """`Tensor.to` of each picture."""
        return ImageList(image.to(*args, **kwargs) for image in self)

    def half(self) -> ImageList:
        """Each picture in float16."""
        return self.to(torch.float16)

    def cuda(self, device: Any = None) -> ImageList:
        """Each picture on a GPU."""
        return self.to("cuda" if device is None else device)


def _pixels(image: Image.Image, image_processor: Any) -> Tensor:
    return image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Tensor | ImageList:
    """Turns pictures into what the vision tower takes.

    Args:
        images: The pictures.
        image_processor: A `CLIPImageProcessor`, or one that says `keeps_aspect_ratio` and so gets unpadded pictures.
        model_cfg: Anything that may carry `image_aspect_ratio` ("pad", "anyres", otherwise the processor's own way)
            and, for "anyres", `image_grid_pinpoints`.

    Returns:
        Float tensor (images, channels, height, width), for "anyres" (images, 1 + tiles, channels, height, width), when
        all shapes agree; otherwise a list, which has `to` and `half` as a tensor has.
    """
    # Clients pass bare namespaces and processors of their own: an absent attribute means LLaVA's default.
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if getattr(image_processor, "keeps_aspect_ratio", False):
        tensors = [_pixels(image, image_processor) for image in images]
    elif aspect_ratio == "pad":
        tensors = [_padded_pixels(image, image_processor) for image in images]
    elif aspect_ratio == "anyres":
        tensors = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
    else:
        tensors = [_pixels(image, image_processor) for image in images]
    same_shape = len({tensor.shape for tensor in tensors}) == 1
    return torch.stack(tensors) if same_shape else ImageList(tensors)


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | Tensor:
    """Tokenizes a prompt, with `image_token_index` in place of every `<image>`.

    Args:
        prompt: Text with any number of `<image>`.
        tokenizer: Called on the pieces between; a leading BOS is kept once.
        image_token_index: The id that stands for a picture.
        return_tensors: None for a list, "pt" for an int64 tensor (length,).

    Raises:
        ValueError: for any other `return_tensors`.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
    pieces = [tokenizer(piece).input_ids for piece in prompt.split(DEFAULT_IMAGE_TOKEN)]
    bos = tokenizer.bos_token_id
    has_bos = bos is not None and pieces[0][:1] == [bos]
    ids = [bos] if has_bos else []
    for i, piece in enumerate(pieces):
        if i > 0:
            ids.append(image_token_index)
        ids.extend(piece[has_bos:])
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def get_model_name_from_path(model_path: str) -> str:
    """Returns the last folder's name; for a `checkpoint-N` folder, its parent's name comes first."""
    parts = str(model_path).strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{parts[-1]}"
    return parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops each row of a batch once its new text contains one of the keywords.

    Works on the prompt followed by new tokens and on new tokens alone, which is what LLaVA's `generate` produces.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: Tensor) -> None:
        """
        Args:
            keywords: Texts to stop at.
            tokenizer: Decodes the new tokens.
            input_ids: The prompt, int64 (batch, length).
        """
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.input_ids = input_ids
        ids = [torch.tensor(tokenizer(keyword).input_ids) for keyword in self.keywords]
        self.keyword_ids = [row[1:] if len(row) > 1 and row[0] == tokenizer.bos_token_id else row for row in ids]
        # A token holds at least one byte of text, so a keyword that ends here began at most this many tokens ago.
        self.window = max((len(keyword.encode()) for keyword in self.keywords), default=0) + 1

    def __call__(self, output_ids: Tensor, scores: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Returns bool (batch,): which rows have met a keyword."""
        start = self._prompt_length(output_ids)
        stopped = [self._ends_with_keyword(row[start:]) for row in output_ids]
        return torch.tensor(stopped, dtype=torch.bool, device=output_ids.device)

    def _prompt_length(self, output_ids: Tensor) -> int:
        """The prompt's length if the output begins with it, else 0."""
        length = self.input_ids.shape[1]
        prefix = output_ids[:, :length]
        included = prefix.shape == self.input_ids.shape and torch.equal(prefix, self.input_ids.to(prefix.device))
        return length if included else 0

    def _ends_with_keyword(self, new_ids: Tensor) -> bool:
        for ids in self.keyword_ids:
            if len(ids) and torch.equal(new_ids[-len(ids) :], ids.to(new_ids.device)):
                return True
        text = self.tokenizer.decode(new_ids[-self.window :], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)


def encode_image_to_base64(image: Image.Image, image_format: str) -> str:
    """Returns the base64 text of a picture written as `image_format` ("PNG", "JPEG")."""
    buffer = BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()


def fit_for_chat(image: Image.Image, mode: str, max_len: int = CHAT_LONG, min_len: int = CHAT_SHORT) -> Image.Image:
    """Fits a picture for a chat request.

    Args:
        image: The picture.
        mode: "Pad" to a square, "Resize" to 336 x 336, "Default" or "Crop" to keep its shape.
        max_len: Longer side from which a picture is shrunk, and its largest value then, in pixels.
        min_len: Largest shorter side of a picture that is shrunk.

    Raises:
        ValueError: for any other mode.
    """
    if mode == "Pad":
        image = expand2square(image.convert("RGB"), _CHAT_PADDING)
    elif mode == "Resize":
        image = image.resize((336, 336))
    elif mode not in ("Default", "Crop"):
        raise ValueError(f"mode must be 'Pad', 'Resize', 'Default' or 'Crop', got {mode!r}")
    long, short = max(image.size), min(image.size)
    if long <= max_len:
        return image
    new_short = max(int(min(max_len * short / long, min_len, short)), 1)
    new_long = int(new_short * long / short)
    return image.resize((new_long, new_short) if image.width >= image.height else (new_short, new_long))
