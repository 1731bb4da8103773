"""The base class of vision towers: loading, image processors, and the features that the language model takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llava.model.config import MultimodalConfig
from llava.model.loading.files import check_weights
from llava.model.loading.strict import read_pretrained
from llava.model.multimodal_encoder.pretrained import (
    check_select_feature,
    check_select_layer,
    default_image_processor,
    find_image_processor,
    load_image_processor,
    read_vision_config,
    vision_config,
)
from llava.model.vision.image_tokens import ImageTokens, stack_features


class VisionTower(nn.Module, ABC):
    """A pretrained vision transformer, read at one hidden layer.

    Built empty where its weights come with the checkpoint (`mm_vision_config` is set); otherwise `load_model` fetches
    them from `mm_vision_tower`.
    """

    vision_tower: Any

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.llava_config = config
        self.vision_tower_name = config.mm_vision_tower
        self.select_layer = config.mm_vision_select_layer
        self.select_feature = config.mm_vision_select_feature
        self.image_processor: Any = None
        self.native_processor: Any = None
        self.is_loaded = False
        self._config_only: PreTrainedConfig | None = None
        if config.mm_vision_config is not None:
            self._adopt(AutoModel.from_config(vision_config(config.mm_vision_config), attn_implementation="sdpa"))

    @abstractmethod
    def _wrap(self, model: PreTrainedModel) -> nn.Module:
        """Builds the module that is named `vision_tower` in the checkpoint."""

    @abstractmethod
    def _prepare(self, processor: Any) -> Any:
        """Builds this tower's image processor from the pretrained model's own."""

    @abstractmethod
    def encode(self, images: Sequence[Tensor], **options: Any) -> list[ImageTokens]:
        """Encodes images (C, H, W) on the tower's device."""

    @abstractmethod
    def count_tokens(self, image: Tensor) -> int:
        """Counts the tokens that an image (C, H, W) takes in the language model, without running the tower."""

    def load_model(
        self,
        device_map: Any = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **hub: Any,
    ) -> None:
        """Loads the pretrained tower and freezes it, unless it is loaded already.

        Args:
            device_map: as transformers takes it.
            dtype: of the tower, whatever its own files say; by default the model configuration's.
            device: where the whole tower goes; by default the CPU.
            **hub: `cache_dir`, `revision`, `token`, ...

        Raises:
            FileNotFoundError: there is no such tower.
            ValueError: it is neither CLIP nor SigLIP, or lacks weights.
        """
        if self.is_loaded:
            return
        name = self._name()
        config = read_vision_config(name, **hub)
        if Path(name).is_dir():
            check_weights(Path(name))
        own: torch.dtype | None = self.llava_config.dtype  # type: ignore[attr-defined]
        options: dict[str, Any] = {"dtype": dtype or own or torch.get_default_dtype(), **hub}
        if device_map is not None:
            options["device_map"] = device_map
        try:
            loaded = read_pretrained(AutoModel, name, config=config, attn_implementation="sdpa", **options)
        except OSError as error:
            raise FileNotFoundError(
                f"the weights of the vision tower {name!r} (mm_vision_tower) cannot be loaded: {error}"
            ) from error
        if loaded.missing:
            raise ValueError(
                f"{name} (mm_vision_tower) lacks {len(loaded.missing)} weights of the tower, for example "
                f"{min(loaded.missing)!r}"
            )
        self._adopt(loaded.model if device is None else loaded.model.to(device))
        self.vision_tower.requires_grad_(False)
        is_folder = Path(name).is_dir()
        processor = find_image_processor(Path(name), config) if is_folder else load_image_processor(name, config, **hub)
        self.set_image_processor(processor)

    def _name(self) -> str:
        if self.vision_tower_name is None:
            raise ValueError("mm_vision_tower is not set: there is no tower to load")
        return self.vision_tower_name

    def set_image_processor(self, processor: Any) -> None:
        """Takes the pretrained model's image processor, kept as `native_processor`."""
        self.native_processor = processor
        self.image_processor = self._prepare(processor)

    def load_prior(self, folder: Path) -> None:
        """Reads what the tower needs besides its weights from the checkpoint's folder; nothing by default."""

    def save_prior(self, folder: Path) -> None:
        """Writes what `load_prior` reads."""

    def save_files(self, folder: Path) -> None:
        """Writes the files that a checkpoint with this tower needs besides its weights and configuration."""
        self.native_processor.save_pretrained(folder)
        self.save_prior(folder)

    def forward(self, images: Tensor | Sequence[Any], as_tokens: bool = False, **options: Any) -> Any:
        """Computes features of images.

        Args:
            images: see `encode_tokens`.
            as_tokens: return what `encode_tokens` returns.
            **options: see `encode_tokens`.

        Returns:
            (B, N, D) where all images have the same number of tokens, as with CLIP; else a list of (N_i, D).
        """
        tokens = self._encode_all(images, **options)
        return tokens if as_tokens else stack_features(tokens)

    def encode_tokens(self, images: Tensor | Sequence[Any], **options: Any) -> list[ImageTokens]:
        """Encodes images, to one `ImageTokens` each.

        Args:
            images: (B, C, H, W), or one entry per image: (C, H, W), or (T, C, H, W) for an image of T tiles.
            **options: of the tower's `encode`.
        """
        return self(images, as_tokens=True, **options)  # through the module's call, for its hooks

    def _encode_all(self, images: Tensor | Sequence[Any], **options: Any) -> list[ImageTokens]:
        entries = [image if image.ndim == 4 else image[None] for image in images]
        tiles = [tile.to(self.device) for entry in entries for tile in entry]
        if wrong := [tile.dtype for tile in tiles if not tile.is_floating_point()]:
            raise TypeError(f"an image is {wrong[0]}; it must be floating point, as the image processor gives it")
        tokens = iter(self.encode(tiles, **options))
        return [ImageTokens.join([next(tokens) for _ in entry]) for entry in entries]

    def count_positions(self, image: Tensor) -> int:
        """Counts the positions that an image (C, H, W) takes in the language model."""
        return self.count_tokens(image)

    def _adopt(self, model: PreTrainedModel) -> None:
        check_select_feature(self.select_feature, model.config)
        check_select_layer(self.select_layer, model.config)
        self.vision_tower = self._wrap(model)
        if not hasattr(self.vision_tower, "vision_model"):
            # LLaVA's clients look for an inner model, which today's transformers no longer has. Not registered with
            # nn.Module: a module that holds itself has no state dict.
            object.__setattr__(self.vision_tower, "vision_model", self.vision_tower)
        self.set_image_processor(default_image_processor(model.config))
        self.is_loaded = True

    @property
    def config(self) -> PreTrainedConfig:
        """The pretrained vision model's configuration; before `load_model` only this is read."""
        if "vision_tower" in self._modules:
            return self.vision_tower.config
        if self._config_only is None:
            self._config_only = read_vision_config(self._name())
        return self._config_only

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features; images are converted to it."""
        return next(self.vision_tower.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the tower; images are moved to it."""
        return next(self.vision_tower.parameters()).device

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return self.config.hidden_size

    @property
    def input_size(self) -> int:
        """Side in pixels of the images that the uniform grid takes."""
        return self.config.image_size

    @property
    def num_patches_per_side(self) -> int:
        """n: cells per side of the native grid."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """n * n."""
        return self.num_patches_per_side**2

    @property
    def native_tokens(self) -> int:
        """Tokens of an image of the native size on the uniform grid."""
        return self.num_patches

    @property
    def dummy_feature(self) -> Tensor:
        """Zeros (1, D)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)
