"""The common part of attached models: their QLIP, and the patching of their class.

A model is attached by giving the instance a subclass of its own class, under the same name: nothing in transformers is
replaced, other models are untouched, and saved files name the class that transformers knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.integrations.next_tiles import NextTiles, split_cut
from qlip.mlp import PRIOR_FILE
from qlip.packing import check_pair, pack, unpack
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.tiles import TokenOrder

PROCESSOR = "prepare images with the processor that qlip.attach returned for this model"


@dataclass
class Attachment:
    """The parts of QLIP in one model."""

    vision: QLIPVisionModel
    """The model's own vision tower over leaves; holds the settings."""

    image_processor: QLIPImageProcessor
    """Cuts images with the same settings."""

    plain_processor: Any = None
    """The processor that `attach` was given."""

    tiles: NextTiles | None = None
    """The tiles whose places leaves take, of LLaVA-NeXT."""

    @property
    def cuts_tiles(self) -> bool:
        """Whether an image is a base and tiles, with a quadtree in each."""
        return self.tiles is not None and self.vision.qlip.tiling == "tiles"

    @torch.compiler.disable  # see `qlip.untraced`
    def cut(self, pixel_values: Any, leaf_boxes: Tensor | None, leaf_grids: Tensor | None) -> list[CutImage]:
        """Cuts images in either form that a model takes, on the tower's device.

        Args:
            pixel_values: packed (patches, C, P, P) with leaves; else whole images (B, C, H, W), or (C, H, W) each.
            leaf_boxes: (B, N, 3) or None.
            leaf_grids: (B, 2) or None.

        Raises:
            TypeError: whole images are not floating point.
            ValueError: the tensors do not match each other, or this model's patches.
        """
        if len(pixel_values) == 0:
            raise ValueError("pixel_values hold no image; give at least one, or leave them out for text alone")
        check_pair(leaf_boxes, leaf_grids)
        if leaf_boxes is not None and leaf_grids is not None:
            images = unpack(pixel_values, leaf_boxes, leaf_grids)
            self._check_patches(images[0])
        else:
            self._check_whole(pixel_values)
            images = [self.image_processor.cut(image) for image in pixel_values]
        device = self.vision.position_table.device
        return [image.to(device) for image in images]

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """(C, P, P) of a patch."""
        return tuple(self.vision.adapter.patch_projection.weight.shape[1:])

    def _check_patches(self, image: CutImage) -> None:
        """Raises unless an image was cut for this model under its settings; one image represents its batch."""
        given = image.thumbnail is not None
        if self.cuts_tiles and not given:
            raise ValueError(
                f"the images were cut without tiles, the model is attached with tiling='tiles'; {PROCESSOR}"
            )
        if not self.cuts_tiles and given != (own := self.vision.qlip.thumbnail):
            raise ValueError(f"the images were cut with thumbnail={given}, the model is attached with {own}")
        shape, native = tuple(image.patches.shape[1:]), self.vision.native_grid
        if shape != self.patch_shape:
            raise ValueError(f"pixel_values are patches of {shape}, the model's are {self.patch_shape}; {PROCESSOR}")
        side = native if image.thumbnail is None else image.thumbnail.shape[1] // shape[1]
        if side != native:
            raise ValueError(f"the thumbnails have {side} x {side} patches, the model {native} x {native}; {PROCESSOR}")

    def _check_whole(self, pixel_values: Any) -> None:
        """Raises ValueError unless these are whole images, and the model takes such."""
        if self.cuts_tiles:
            raise ValueError(
                "pixel_values without leaf_boxes are given; with tiling 'tiles' the model's processor makes the tiles:"
                " give all that the attached processor returns"
            )
        channels, size, _ = self.patch_shape
        for image in pixel_values:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != channels:
                raise ValueError(
                    f"pixel_values are {shape} for each image, without leaf_boxes: give all that the attached processor"
                    f" returns, or whole images, tensors of ({channels}, height, width)"
                )
        if isinstance(pixel_values, Tensor) and pixel_values.shape[2:] == (size, size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}, patches of {size} x {size} pixels, and leaf_boxes and"
                f" leaf_grids are missing: {PROCESSOR} and give all it returns; whole images of one patch go in a list"
            )

    def find_lost(self, position_ids: Tensor | None, key_bias: Tensor | None) -> list[str]:
        """Finds what images need in the language model under the settings, and is not given."""
        settings = self.vision.qlip
        lost = ["position_ids"] if position_ids is None and settings.llm_positions == "raster" else []
        return lost + (["key_bias"] if key_bias is None and settings.biases_language_model else [])

    def pack(self, pixel_values: Any) -> dict[str, Tensor]:
        """Packs whole images (B, C, H, W), or (C, H, W) each."""
        return pack(self.cut(pixel_values, None, None), self.image_processor.patch_size)

    def order(self, trees: Sequence[Leaves], image_sizes: Any) -> list[TokenOrder] | None:
        """Orders the tokens of images in LLaVA-NeXT, see `NextTiles.order`; other models keep the tower's: None."""
        return None if self.tiles is None else self.tiles.order(self.vision.qlip, trees, image_sizes)

    def encode(self, images: Sequence[CutImage], select: Sequence[int] | None = None) -> list[Tensor]:
        """Encodes images: (M_i, D) each, in the tower's order.

        Args:
            images: from `cut`.
            select: layers, counted from 0; None is the tower's own.
        """
        if not self.cuts_tiles:
            return self.vision.encode_cut(images, select=select).features
        settings = replace(self.vision.qlip, thumbnail=False)
        parts = [split_cut(image, self.vision.native_grid, self.image_processor.patch_size) for image in images]
        joined = [part for own in parts for part in own]
        features = iter(self.vision.encode_cut(joined, select=select, settings=settings).features)
        return [torch.cat([next(features) for _ in own]) for own in parts]


def image_sizes_of(pixel_values: Any) -> Tensor:
    """Measures whole images: int64 (B, 2), heights and widths."""
    return torch.tensor([tuple(image.shape[1:]) for image in pixel_values])


class AttachedMixin:
    """Mixed into the class of every attached module."""

    attachment: Attachment

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles the two classes that this one is made of, since it can't be imported under a name."""
        parts: Any = super().__reduce_ex__(protocol)
        return _new_instance, (find_mixin(self), find_base(self)), *parts[2:]


class AttachedPreTrainedMixin(AttachedMixin):
    """Mixed into the class of an attached model of transformers."""

    config: Any

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> Any:
        """Saves the model as its own class does, and in the main process an MLP prior for positions beside it."""
        prior = self.attachment.vision.prior
        settings = getattr(self.config, "qlip", None)  # a part's configuration has none
        if prior is None or settings is None:
            return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            prior.save(Path(save_directory) / PRIOR_FILE)
        self.config.qlip = {**settings, "mlp": PRIOR_FILE}
        try:
            return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.config.qlip = settings

    def _get_files_timestamps(self, working_dir: Any) -> dict[str, float]:
        """Lists the files that `save_pretrained(push_to_hub=True)` found, not the prior, which was just written.

        transformers uploads only what changes afterwards.
        """
        times = super()._get_files_timestamps(working_dir)  # type: ignore[misc]
        return {name: time for name, time in times.items() if name != PRIOR_FILE}


def _new_instance(mixin: type, base: type) -> Any:
    attached: Any = make_attached_class(mixin, base)
    return attached.__new__(attached)


@cache
def make_attached_class(mixin: type, base: type) -> type:
    """Makes a subclass of `mixin` and `base`, under the name of `base`."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), names)


def find_base(module: Any) -> type:
    """Finds the class that an attached module was loaded as."""
    return type(module).__bases__[1]


def find_mixin(module: Any) -> type:
    """Finds the mixin in the class of an attached module."""
    return type(module).__bases__[0]


def patch_class(module: nn.Module, mixin: type, attachment: Attachment) -> None:
    """Gives a module the attached subclass of its class."""
    _change_class(module, make_attached_class(mixin, type(module)))  # type: ignore[arg-type]
    module.attachment = attachment  # type: ignore[assignment]  # a plain object, so no second name for the tower


def mark_part(part: nn.Module, whole: nn.Module) -> None:
    """Marks a module as part of an attached model: it can't be attached or detached alone."""
    part.attached_within = type(whole).__name__  # type: ignore[assignment]  # a name only: parts are copied and pickled


def check_not_part(model: nn.Module) -> None:
    """Raises TypeError if a model is a part of an attached one."""
    if (whole := vars(model).get("attached_within")) is not None:
        raise TypeError(f"this {type(model).__name__} is a part of an attached {whole}; attach or detach the whole")


def check_same_tower(tower: nn.Module, attachment: Attachment) -> None:
    """Raises TypeError unless an attached model's tower is the one that was attached, perhaps compiled.

    Another one, such as the copy that PEFT trains for `modules_to_save`, would not run, without an error.
    """
    own = getattr(tower, "_orig_mod", tower)  # what torch.compile wraps
    parts = {name: getattr(part, "_orig_mod", part) for name, part in own.named_children()}
    known = {name: getattr(part, "_orig_mod", part) for name, part in attachment.vision.named_children()}
    if "attached_within" not in vars(own) or any(part is not parts.get(name) for name, part in known.items()):
        raise TypeError(
            f"the vision tower was replaced by a {type(tower).__name__} after qlip.attach, which runs the one it was"
            " given; detach the model, replace the tower, and attach again. To train the tower with PEFT, set"
            " requires_grad on it instead of naming it in modules_to_save"
        )


def find_attachment(model: nn.Module) -> Attachment | None:
    """Finds what is attached to a model, or to a part of it; None if nothing is."""
    return next((module.attachment for module in model.modules() if isinstance(module, AttachedMixin)), None)


def unpatch(model: nn.Module) -> None:
    """Restores the classes of a model and of its parts."""
    for module in list(model.modules()):
        vars(module).pop("attached_within", None)
        if isinstance(module, AttachedMixin):
            _change_class(module, find_base(module))
            del module.attachment


def _change_class(module: nn.Module, new: type) -> None:
    """Changes the class of an instance, also inside accelerate's hooks, which wrap the instance's `forward`.

    A `device_map` over several devices puts such hooks on every part of a model.
    """
    module.__class__ = new  # type: ignore[assignment]
    if "_old_forward" in vars(module):
        module._old_forward = MethodType(new.forward, module)  # type: ignore[attr-defined, assignment]
        module.forward.__wrapped__ = module._old_forward  # type: ignore[attr-defined]
