"""Trains LLaVA with PyTorch's attention; LLaVA's name for machines without FlashAttention (V100).

PyTorch's own kernels take what xformers did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.train.train import run_training


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_training(argv, "sdpa")


if __name__ == "__main__":
    sys.exit(main())
