"""The checkpoints that the published tables measure. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from llava.utils import demo_model_path


def trained_path() -> Path:
    """Finds the model of the recipe `llava`, trained as LLaVA is, which the tables are about."""
    return demo_model_path().parent / "llava-text-demo"
