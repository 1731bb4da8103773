"""Compiled loops, switched on."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numba
import pytest

from qlip import kernels


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """Switches the compiled loops on, which `tests/conftest.py` switches off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 0)
        kernels.load_loops.cache_clear()
        yield
    kernels.load_loops.cache_clear()


@pytest.fixture(scope="module")
def loops(compiled: None) -> ModuleType:
    found = kernels.load_loops()
    assert found is not None
    return found
