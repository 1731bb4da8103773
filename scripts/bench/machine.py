"""The machine that times were measured on."""

from __future__ import annotations

import os
import platform
from datetime import date
from typing import Any


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Describes what times depend on, by name."""
    import torch
    import transformers

    from qlip.kernels import load_loops

    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "loops": "compiled by numba" if load_loops() else "of numpy",
    }


def machine_line(device: str = "cpu", more: str = "") -> str:
    """Formats the machine and the day as a line below a table; `more` is a sentence to add."""
    facts, today = describe_machine(device), date.today()
    where = facts["device"] if device.startswith("cuda") else f"{facts['cores']} {facts['device']} cores"
    ending = f" {more}" if more else ""
    return (
        f"*{where}; torch {facts['torch']}, threads: {facts['threads']}; transformers {facts['transformers']}; loops"
        f" {facts['loops']}; {today.day} {today:%B %Y}.{ending}*"
    )
