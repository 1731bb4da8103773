"""Accuracy over QLIP's settings."""

from __future__ import annotations

from typing import Any


def add_command(commands: Any) -> None:
    """Adds `qlip sweep`. Installations of version 1.0 name this function in their metadata."""
    from llava.eval.sweep.command import add_command as add

    add(commands)
