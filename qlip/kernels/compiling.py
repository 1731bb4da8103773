"""Compiles functions with numba; the result is cached on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

if hasattr(os, "register_at_fork"):  # else a child forked during a compilation would wait for the lock forever
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

Kernel = Callable[..., Any]


def compile_loop(function: Kernel, variant: int | str = "") -> Kernel:
    """Compiles at the first call; runs without the GIL, and is cached on disk where numba finds a folder.

    Args:
        function: what is compiled.
        variant: distinguishes functions that a factory makes under one name; otherwise numba would load the code of one
            for another from its disk cache, which crashes where it returns arrays.
    """
    if variant:
        function.__qualname__ += f"_{variant}"
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(function, nogil=True)
