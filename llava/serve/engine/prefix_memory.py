"""How much memory the keys and values of earlier prompts may take."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from llava.serve.engine.params import EngineLimits

logger = logging.getLogger(__name__)

FULL_CONTEXTS = 4
"""Conversations as long as the model's context that should fit."""
MIN_BYTES = 2**30
"""Bytes that are kept also for a smaller model, and where the system does not say what is free."""
FREE_MEMORY_SHARE = 0.25
"""Largest share of the free memory to use; running answers need the rest."""


def choose_prefix_bytes(model: Any, context_len: int, limits: EngineLimits) -> int:
    """Chooses the bytes for keys and values of earlier prompts, and logs them.

    Args:
        model: A loaded LLaVA model.
        context_len: Tokens of its context.
        limits: `max_prefix_mib` decides, if it is given.
    """
    token = count_token_bytes(model)
    if limits.max_prefix_mib is not None:
        chosen = limits.max_prefix_mib * 2**20
    else:
        free, wanted = find_free_bytes(model), max(MIN_BYTES, FULL_CONTEXTS * context_len * token)
        chosen = MIN_BYTES if free is None else min(wanted, int(FREE_MEMORY_SHARE * free))
    logger.info(
        "at most %d MiB of keys and values of earlier prompts: %d tokens; the context has %d (--prefix-cache-mib)",
        chosen // 2**20,
        chosen // token,
        context_len,
    )
    return chosen


def count_token_bytes(model: Any) -> int:
    """Counts the bytes of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def find_free_bytes(model: Any) -> int | None:
    """Finds the memory that is free where a model's layers are, which get about equal parts of the keys and values.

    Returns:
        Bytes of all their devices; None where the system does not say.
    """
    devices = {parameter.device for parameter in model.get_model().layers.parameters()}
    cuda = [device for device in devices if device.type == "cuda"]
    if cuda:
        return len(cuda) * min(torch.cuda.mem_get_info(device)[0] for device in cuda)
    return find_free_memory()


def find_free_memory(root: Path = Path("/")) -> int | None:
    """Finds the main memory that this process may still take, by the system and by the limits of its control groups.

    Args:
        root: Root of the file system.

    Returns:
        Bytes; None where the system does not say, as on Windows and macOS.
    """
    return min([*_free_of_system(root), *_free_of_groups(root)], default=None)


def _free_of_system(root: Path) -> Iterator[int]:
    with suppress(OSError, KeyError):
        yield 1024 * _read_table(root / "proc/meminfo")["MemAvailable:"]


def _free_of_groups(root: Path) -> Iterator[int]:
    """Yields what each control group of this process has left; pages of files that can be dropped count as free."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, own = line.split(":", 2)
            if kinds in ("", "memory"):
                old = kinds == "memory"  # the first version of control groups
                base = root / "sys/fs/cgroup" / ("memory" if old else "")
                limit, used = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
                inner = base / own.lstrip("/")
                for group in (inner, *inner.parents):
                    with suppress(OSError, ValueError):  # no such group from inside a container, or no limit
                        most, taken = (int((group / f"memory.{name}").read_text()) for name in (limit, used))
                        yield max(0, most - taken + _read_table(group / "memory.stat").get("inactive_file", 0))
                    if group == base:
                        break


def _read_table(path: Path) -> dict[str, int]:
    """Reads lines of a name and a number."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows}
