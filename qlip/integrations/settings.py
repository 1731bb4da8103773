"""Chooses the settings that `qlip.attach` uses: given ones, those of the checkpoint, or the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qlip.config import QLIPConfig
from qlip.integrations.attachment import SavedSettings
from qlip.integrations.classes import find_attachment
from qlip.saved_settings import locate_prior, read_saved_settings


def read_checkpoint(model: nn.Module) -> SavedSettings:
    """Reads the settings that a model's checkpoint holds, which are not those of an earlier `attach`.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    config: Any = getattr(model, "config", None)  # timm's and open_clip's models have none
    entry, attachment = getattr(config, "qlip", None), find_attachment(model)
    if attachment is not None and entry in (None, attachment.vision.qlip.to_dict()):  # not edited since
        return attachment.saved
    settings = locate_prior(read_saved_settings(entry), _folder_of(model), required=False)
    return SavedSettings(entry if attachment is None else attachment.saved.entry, settings)


def restore_entry(config: Any, saved: SavedSettings) -> None:
    """Restores what a model's configuration held as `qlip` before `attach`."""
    del config.qlip
    if saved.entry is not None:
        config.qlip = saved.entry


def choose_settings(
    model: nn.Module, saved: SavedSettings, config: QLIPConfig | None, changes: Mapping[str, Any]
) -> QLIPConfig:
    """Chooses the settings: `changes`, then `config` or those of the checkpoint, then the defaults.

    Raises:
        FileNotFoundError: there is no MLP prior at the path in the settings.
        TypeError: `config` is not a QLIPConfig.
        ValueError: a setting is unknown or out of range, or a prior is given and not read.
    """
    if config is not None and not isinstance(config, QLIPConfig):
        raise TypeError(f"config is {config!r}; it must be a QLIPConfig; give single settings by keyword")
    own = saved.settings if config is None else config
    chosen = QLIPConfig.from_dict({**own.to_dict(), **changes})
    if changes.get("mlp") is not None and "interpolation" not in changes and chosen.interpolation != "mlp":
        raise ValueError(
            f"mlp is {chosen.mlp!r}, but interpolation is {chosen.interpolation!r}, which reads no prior; give"
            " interpolation='mlp' as well, or leave mlp out"
        )
    is_saved = config is None and "mlp" not in changes
    return locate_prior(chosen, _folder_of(model) if is_saved else "")


def _folder_of(model: nn.Module) -> str:
    """Finds the folder that a model was loaded from, or its id on the hub; "" if it was not loaded."""
    return getattr(getattr(model, "config", None), "_name_or_path", "")
