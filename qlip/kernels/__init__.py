"""Loops over pixels compiled by numba, on a CPU where it is installed (`pip install ".[fast]"`).

Without numba, numpy and Pillow compute the same more slowly. `NUMBA_DISABLE_JIT=1` switches the loops off.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


def find_loops(array: Any) -> ModuleType | None:
    """Finds the compiled loops (`qlip.kernels.loops`) that take this array; None where numpy or torch must do it."""
    is_taken = isinstance(array, np.ndarray) and array.dtype == np.float32
    return load_loops() if is_taken else None


@cache
def load_loops() -> ModuleType | None:
    """Imports the compiled loops; None, with a warning where numba is installed, if they can't be used."""
    try:
        import numba

        if numba.config.DISABLE_JIT:
            return None
        from qlip.kernels import loops
    except (ImportError, OSError) as error:  # numba rejects newer versions of numpy, or its library does not load
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return None
        logger.warning("numba is installed but can't be used, so numpy cuts images, more slowly: %s", error)
        return None
    return loops
