"""QLIP inside a processor of transformers: images are cut, and <image> becomes as many tokens as they have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import ProcessorMixin
from transformers.processing_utils import ImagesKwargs

from qlip.config import QLIPConfig
from qlip.image_processing import OWN_OPTIONS, QLIPImageProcessor
from qlip.images.arrays import flatten_images, to_pillow
from qlip.integrations.subclasses import BuildsPlain, find_base, make_subclass


class AttachedProcessorMixin(BuildsPlain):
    """Mixin for the class of a processor; see `attach_processor`."""

    image_processor: QLIPImageProcessor
    plain_image_processor: Any
    """The processor's own image processor: it is saved, and `detach_processor` restores it."""

    image_token: str

    def validate_inputs(self, images: Any = None, *args: Any, **kwargs: Any) -> None:
        """Validates as transformers does, which knows no grey arrays in lists: of Pillow images in their place."""
        if images is not None:
            images = [to_pillow(image) for image in flatten_images(images)]
        super().validate_inputs(images, *args, **kwargs)  # type: ignore[misc]

    def _process_images(self, images: Any, **options: Any) -> tuple[Any, list[str]]:
        """Packs images, and builds the text that replaces each <image> in the prompt; transformers calls it."""
        check_options(options)
        pictures = flatten_images(images)
        if not pictures:
            return {}, []
        packed = self.image_processor.pack(pictures, **options)
        if getattr(self, "image_token", None) is None:  # no images inside the text, as in CLIP's processor
            return packed, []
        return packed, [self.image_token * count for count in self.image_processor.count_placeholders(packed)]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **options: Any) -> Any:
        raise TypeError("with QLIP the number of an image's tokens depends on its content, not on its size alone")

    def to_dict(self) -> dict[str, Any]:
        """Builds the values of the original processor, so that transformers alone can load what is saved."""
        values = super().to_dict()  # type: ignore[misc]
        values["image_processor"] = self.plain_image_processor.to_dict()
        return values


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the options of images that a processor was called with.

    Raises:
        TypeError: transformers has no such option.
    """
    if unknown := sorted(options.keys() - ImagesKwargs.__annotations__.keys() - OWN_OPTIONS):
        way_out = f": give it to qlip.attach(model, processor, {unknown[0]}=...)"
        is_setting = unknown[0] in {setting.name for setting in fields(QLIPConfig)}
        raise TypeError(f"{unknown[0]} is not an option for images{way_out if is_setting else ''}")


def attach_processor(processor: ProcessorMixin, image_processor: QLIPImageProcessor) -> Any:
    """Copies `processor` with `image_processor` in it; the tokenizer is shared."""
    plain = detach_processor(processor)
    attached = copy.copy(plain)
    attached.__class__ = make_subclass(AttachedProcessorMixin, type(plain))  # type: ignore[arg-type]
    attached.plain_image_processor = plain.image_processor
    attached.image_processor = image_processor
    return attached


def detach_processor(processor: Any) -> Any:
    """Copies an attached processor without QLIP; returns any other as it is."""
    if not isinstance(processor, AttachedProcessorMixin):
        return processor
    plain = copy.copy(processor)
    plain.__class__ = find_base(processor)
    plain.image_processor = plain.__dict__.pop("plain_image_processor")
    return plain


def check_processor(processor: Any) -> None:
    """Raises TypeError unless `processor` is None or has the values that images are normalised with."""
    plain = getattr(processor, "image_processor", processor)
    if plain is not None and getattr(plain, "image_mean", None) is None:
        what = repr(plain) if isinstance(plain, (str, type)) else f"a {type(plain).__name__}"
        raise TypeError(
            f"processor is {what}; it must be the model's processor (AutoProcessor), or for a vision model its image"
            " processor (AutoImageProcessor), or None"
        )
