"""QLIP's image processor: normalised tensors whose sides are whole cells, at native resolution or a chosen size.

A replacement for transformers' CLIPImageProcessor with the same attributes, `preprocess` and files. Nothing is cropped
and the aspect ratio is kept to within half a cell, with geometry "native" half a native cell.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from qlip.config import QLIPConfig
from qlip.cutting import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ImageCutter, read_channels
from qlip.images.arrays import list_images, to_pillow
from qlip.images.sources import open_sources
from qlip.packing import PACKED_NAMES, pack
from qlip.patches import CutImage
from qlip.quadtree import Leaves

logger = logging.getLogger(__name__)

OWN_OPTIONS = frozenset(
    ("size", "crop_size", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    + ("resample", "rescale_factor", "image_mean", "image_std", "image_grid_pinpoints", "input_data_format")
)
"""Options of transformers' image processors that QLIP's settings replace."""
VALUES = ("patch_size", "crop_size", "image_mean", "image_std", "qlip")
"""What the file of a `QLIPImageProcessor` must hold."""


class QLIPImageProcessor(ImageProcessingMixin):
    """Prepares images for `QLIPVisionModel`.

    Args:
        patch_size: P, pixels per side of a cell.
        native_size: side, in pixels, of the square images that the tower was trained on.
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel.
        qlip: the settings, or their dict; `image_size`, `max_cells` and `max_tokens` decide the size of images.
    """

    model_input_names = list(PACKED_NAMES)
    keeps_aspect_ratio = True

    plain: Any = None
    """The model's own image processor, if any: saved instead of this one, so that transformers alone can load it."""

    def __init__(
        self,
        patch_size: int = 14,
        native_size: int = 336,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        qlip: QLIPConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        native_size = ImageCutter(patch_size, native_size).native_size
        self.patch_size = patch_size
        self.size = {"shortest_edge": native_size}
        self.crop_size = {"height": native_size, "width": native_size}
        self.image_mean = list(read_channels("image_mean", image_mean))
        self.image_std = list(read_channels("image_std", image_std, above=0))
        self.qlip = qlip if isinstance(qlip, QLIPConfig) else QLIPConfig.from_dict(qlip or {})

    @classmethod
    def from_clip(cls, processor: Any, patch_size: int, native_size: int, qlip: QLIPConfig) -> QLIPImageProcessor:
        """Makes a processor with the mean and std of a CLIP or SigLIP image processor and the tower's sizes."""
        return cls(patch_size, native_size, *find_normalisation(processor), qlip)

    @classmethod
    def for_tower(cls, tower: Any, processor: Any = None, normalisation: Any = None) -> QLIPImageProcessor:
        """Makes the processor of a `QLIPVisionModel`: its sizes and settings. `qlip.attach` makes an attached model's.

        Args:
            tower: the model.
            processor: the image processor of transformers whose normalisation to take over.
            normalisation: mean and std, without a processor; None takes the tower's own.

        Raises:
            TypeError: `tower` is another model.
        """
        adapter = getattr(tower, "adapter", None)
        if adapter is None:
            raise TypeError(
                f"tower is a {type(tower).__name__}; it must be a QLIPVisionModel. qlip.attach(model, processor)"
                " returns the processor of the model that it changes"
            )
        own = map(_per_channel, normalisation or adapter.normalisation)
        mean, std = own if processor is None else find_normalisation(processor)
        return cls(adapter.patch_size, adapter.native_grid * adapter.patch_size, mean, std, tower.qlip)

    @property
    def takes_tiles(self) -> bool:
        """Whether images of a tile-trained model are cut tile by tile (`tiling="tiles"`)."""
        return self.qlip.tiling == "tiles"

    @property
    def cutter(self) -> ImageCutter:
        """The same work without transformers; takes the settings per call."""
        mean, std = tuple(self.image_mean), tuple(self.image_std)
        return ImageCutter(self.patch_size, self.crop_size["height"], mean, std)

    @property
    def native_grid(self) -> int:
        """n: cells per side of the native image."""
        return self.cutter.native_grid

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths, URLs and base64 texts, see `open_sources`; transformers' processors call it."""
        return open_sources(image_url_or_urls)

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Turns images into `pixel_values`.

        Args:
            images: a Pillow image of any mode; a path, URL or base64 text; an array or tensor, uint8 or float in
                [0, 1], (H, W), (H, W, C) or (C, H, W); or a sequence of these, or an array or tensor of several
                (B, ...). Where both the first and the last axis may be channels, a tensor's are the first, an array's
                the last.
            return_tensors: "pt" or "np". One array (B, 3, H, W) where all sizes agree, else a list. None: a list.

        Raises:
            TypeError: an image is none of these.
            ValueError: an unknown `return_tensors`, no image, one that can't be read, or floats outside of [0, 1].
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}; allowed are 'pt', 'np' and None")
        batch = list_images(self.fetch_images(images))
        tensors = [self.cutter.normalise(to_pillow(image), self.qlip) for image in batch]
        alike = len({tensor.shape for tensor in tensors}) == 1
        if return_tensors == "pt":
            return BatchFeature({"pixel_values": torch.stack(tensors) if alike else tensors})
        arrays = [tensor.numpy() for tensor in tensors]
        return BatchFeature({"pixel_values": np.stack(arrays) if alike and return_tensors else arrays})

    __call__ = preprocess

    def pack(self, images: Sequence[Any], **options: Any) -> BatchFeature:
        """Turns images into packed tensors (`qlip.packing`): cut here, once, so that all readers agree.

        Args:
            images: see `preprocess`.
            options: of transformers' image processors; those that would change the pixels are refused.

        Raises:
            TypeError: an option that the settings decide.
        """
        refuse_own_options(options)
        batch = list_images(self.fetch_images(images))
        return BatchFeature(pack(self.cut_originals(batch), self.patch_size))

    def cut_originals(self, images: Sequence[Any]) -> list[CutImage]:
        """Cuts opened images, see `preprocess`."""
        return [self.cutter.prepare(to_pillow(image), self.qlip) for image in images]

    def count_placeholders(self, packed: Mapping[str, Tensor]) -> list[int]:
        """Counts the prompt's image tokens for each image packed by `pack`."""
        return self.count_tokens(packed["leaf_boxes"])

    def count_tokens(self, leaf_boxes: Tensor) -> list[int]:
        """Counts the tokens of each of B packed images (B, N, 3)."""
        extra = self.native_grid**2 if self.qlip.thumbnail else 0
        return [count + extra for count in (leaf_boxes[..., 2] > 0).sum(1).tolist()]

    def choose_grid(self, height: int, width: int) -> tuple[int, int]:
        """Chooses the (rows, cols) of cells that an image of `height` x `width` pixels is resized to."""
        return self.cutter.choose_grid(height, width, self.qlip)

    def fitted_size(self, width: int, height: int) -> tuple[int, int]:
        """Computes the (width, height) in pixels, of whole cells, that an image of these sides is resized to."""
        return self.cutter.make_fit(self.qlip)(width, height)

    def partition(self, pixels: Tensor | np.ndarray) -> Leaves:
        """Computes the leaves of one prepared image (3, H, W): those that a tower of these settings finds."""
        return self.cutter.partition(_as_tensor(pixels), self.qlip)

    def cut(self, pixels: Tensor | np.ndarray) -> CutImage:
        """Cuts out the leaves of one prepared image (3, H, W), all that a tower of these settings needs."""
        return self.cutter.cut(_as_tensor(pixels), self.qlip)

    def to_dict(self) -> dict[str, Any]:
        """Builds what `save_pretrained` writes as preprocessor_config.json."""
        if self.plain is not None:
            return self.plain.to_dict()
        return {
            "image_processor_type": type(self).__name__,
            "patch_size": self.patch_size,
            "size": self.size,
            "crop_size": self.crop_size,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "qlip": self.qlip.to_dict(),
        }

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Inverts `to_dict`.

        Args:
            image_processor_dict: what `to_dict` builds.
            **kwargs: values that replace those of the same name; and transformers' `return_unused_kwargs`. Others have
                no effect, as in transformers, and are named in a warning.

        Raises:
            ValueError: the values are those of another image processor.
        """
        keeps_unused = kwargs.pop("return_unused_kwargs", False)
        values = {**image_processor_dict, **{name: kwargs.pop(name) for name in VALUES if name in kwargs}}
        if "tiles" in values and not hasattr(cls, "tiles"):
            raise ValueError(
                "preprocessor_config.json is a LLaVA-NeXT model's, whose images take the places of tiles; load it by"
                " qlip.integrations.next_tiles.NextImageProcessor.from_pretrained"
            )
        if missing := [name for name in VALUES if name not in values]:
            raise ValueError(
                f"preprocessor_config.json lacks {missing[0]!r}: it is not a QLIP image processor's; give the model's"
                " own to qlip.attach, or call QLIPImageProcessor with the tower's sizes"
            )
        if kwargs and not keeps_unused:  # transformers ignores what it does not know, `use_fast` for one
            logger.warning("QLIPImageProcessor takes %s; ignored: %s", ", ".join(VALUES), ", ".join(sorted(kwargs)))
        native = values["crop_size"]
        native = native["height"] if isinstance(native, Mapping) else native
        processor = cls(values["patch_size"], native, values["image_mean"], values["image_std"], values["qlip"])
        return (processor, kwargs) if keeps_unused else processor


def find_normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """Finds the mean and standard deviation, of pixels in [0, 1], that an image processor normalises with.

    `do_normalize`, `do_rescale` and `rescale_factor` of transformers' image processors are part of both: they compute
    (levels * rescale_factor - mean) / std, of levels from 0 to 255.
    """
    mean, std = [0.0] * 3, [1.0] * 3
    if getattr(processor, "do_normalize", True) is not False:
        mean, std = _per_channel(processor.image_mean), _per_channel(processor.image_std)
    factor = 1.0 if getattr(processor, "do_rescale", True) is False else getattr(processor, "rescale_factor", None)
    if factor is None or math.isclose(255 * factor, 1.0, abs_tol=1e-6):  # the usual one: nothing changes
        return mean, std
    return [value / (255 * factor) for value in mean], [value / (255 * factor) for value in std]


def _per_channel(value: Any) -> list[float]:
    return [value] * 3 if isinstance(value, int | float) else list(value)


def _as_tensor(pixels: Tensor | np.ndarray) -> Tensor:
    return pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)


def refuse_own_options(options: Mapping[str, Any]) -> None:
    """Raises TypeError if options of transformers' image processors are given that QLIP's settings replace."""
    if refused := sorted(name for name, value in options.items() if name in OWN_OPTIONS and value is not None):
        raise TypeError(f"{', '.join(refused)} can't be given: QLIP prepares images by its own settings")
