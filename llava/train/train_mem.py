"""Trains LLaVA with FlashAttention 2 in the language model; flags as `llava.train.train` takes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.train.train import run_training


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_training(argv, "flash_attention_2")


if __name__ == "__main__":
    sys.exit(main())
