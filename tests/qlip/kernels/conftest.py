"""Compiled loops, switched on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import numba
import pytest

from qlip import kernels

IS_IMPORTED_EARLY = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Notes whether a test file imports compiled modules at its top, where the loops are off: they stay uncompiled."""
    session.config.stash[IS_IMPORTED_EARLY] = "qlip.kernels.compiling" in sys.modules


@pytest.fixture(scope="module", autouse=True)
def compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Switches the compiled loops on, which `tests/conftest.py` switches off."""
    # Numba's cache on disk would hide it: what is loaded from there does not look at the functions that it calls.
    assert not request.config.stash[IS_IMPORTED_EARLY], "import modules of qlip.kernels in a fixture"
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
