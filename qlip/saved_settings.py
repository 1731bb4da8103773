"""Settings that a checkpoint's configuration holds as `qlip`, and the path of the MLP prior that they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qlip.config import QLIPConfig


def read_saved_settings(saved: Any) -> QLIPConfig:
    """Reads the entry `qlip` of a configuration; the defaults if it is absent or a bool.

    Raises:
        ValueError: a setting is unknown or out of range.
    """
    return QLIPConfig() if saved is None or isinstance(saved, bool) else QLIPConfig.from_dict(saved)


def locate_prior(settings: QLIPConfig, folder: str, required: bool = True) -> QLIPConfig:
    """Resolves the path of the MLP prior, so that it stays valid in another working directory.

    Args:
        settings: `mlp` may be None.
        folder: where a relative path begins: the checkpoint's folder (or its id on the hub, where no file is found) for
            settings that the checkpoint holds; "" for the working directory.
        required: raise where the settings use a prior that is not there.

    Raises:
        FileNotFoundError: the settings use the prior of a checkpoint, and it is not in its folder.
    """
    if settings.mlp is None:
        return settings
    path = Path(folder) / settings.mlp
    if path.is_file():
        return replace(settings, mlp=str(path.absolute()))  # a link of the hub's cache keeps its name, so its type
    if required and settings.interpolation == "mlp":
        hint = "; a checkpoint of the hub, or in a subfolder, is loaded without it: give the file's path as `mlp`"
        raise FileNotFoundError(f"no MLP prior at {path}{hint if folder else ''}")
    return settings
