"""Chooses how a model is loaded: its devices, its dtype, its attention and its quantisation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llava.model.loading.quantization import quantization
from llava.utils import check_device

logger = logging.getLogger(__name__)

DEVICE_MAP_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways of transformers to spread a model over GPUs."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What a model can be built and run in: torch stores weights in narrower ones, but does not compute in them."""


def choose_options(
    device: str,
    device_map: str | int | torch.device | Mapping[str, Any] | None,
    dtype: torch.dtype | str | None,
    attention: str | None,
    eight_bit: bool = False,
    four_bit: bool = False,
) -> dict[str, Any]:
    """Chooses the arguments of transformers' `from_pretrained`; `load_pretrained_model` explains these.

    Raises:
        ValueError: the machine has no such device, or `dtype` is none of `DTYPES`.
    """
    placement = choose_placement(device, "auto" if device_map is None else device_map)
    # Weights that are moved from the CPU to a GPU are not widened, nor those in 8 bits, whose products are in float16.
    stays = device == "cpu" or not torch.cuda.is_available()
    chosen = choose_dtype(dtype, placement, stays and not eight_bit)
    options: dict[str, Any] = {"dtype": chosen, "device_map": placement}
    if attention:
        options["attn_implementation"] = attention
    if eight_bit or four_bit:
        options["quantization_config"] = quantization(four_bit, chosen)
    return options


def choose_placement(device: str, device_map: str | int | torch.device | Mapping[str, Any]) -> dict[str, Any] | str:
    """Chooses the device map that `device` and `device_map` mean on this machine.

    Raises:
        ValueError: the machine has no such device, or `device_map` is an empty dict.
    """
    if device != "cuda":
        check_device(device, "device")
        return {"": device}
    if isinstance(device_map, Mapping):
        for part, place in device_map.items():
            if place != "disk":
                check_device(name_device(place), f"device_map[{part!r}]")
        if not device_map:
            raise ValueError("device_map is {}; it must give each part a device, or '' the device of all")
        return dict(device_map)
    if device_map in DEVICE_MAP_STRATEGIES:
        if torch.cuda.is_available():
            return str(device_map)
        logger.warning("this machine has no CUDA device: loading the model on the CPU")
        return {"": "cpu"}
    name = name_device(device_map)
    check_device(name, "device_map")
    return {"": "cuda:0" if name == "cuda" else name}


def name_device(place: str | int | torch.device) -> str:
    """Names a device as torch does; a number is a CUDA device's."""
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def is_on_cpu(placement: dict[str, Any] | str) -> bool:
    """Whether a device map leaves the whole model on the CPU."""
    return isinstance(placement, dict) and {name_device(place) for place in placement.values()} == {"cpu"}


def choose_dtype(dtype: torch.dtype | str | None, placement: dict[str, Any] | str, widen: bool) -> torch.dtype | str:
    """Chooses the caller's dtype, else float16; float32 on the CPU if `widen`.

    Raises:
        ValueError: none of `DTYPES`.
    """
    if dtype is None:
        return torch.float32 if widen and is_on_cpu(placement) else torch.float16
    if dtype == "auto":
        return dtype
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed are {_list_dtypes()} and 'auto'")
    return chosen


def check_auto(dtype: Any, stated: torch.dtype | None, folder: Path) -> None:
    """Checks that a checkpoint's own dtype, which "auto" takes, is one to compute in.

    Args:
        dtype: what the caller chose.
        stated: by the checkpoint's config.json.
        folder: the checkpoint.

    Raises:
        ValueError: it is not.
    """
    if dtype == "auto" and stated is not None and stated not in DTYPES:
        name = str(stated).removeprefix("torch.")
        raise ValueError(
            f"{folder / 'config.json'}: torch_dtype is {name!r}, which a model cannot be computed in; allowed with"
            f" dtype 'auto' are {_list_dtypes()}: give dtype='float16' or another of these"
        )


def _list_dtypes() -> str:
    return ", ".join(repr(str(dtype).removeprefix("torch.")) for dtype in DTYPES)
