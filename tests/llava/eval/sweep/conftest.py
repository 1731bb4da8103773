"""Sweeps without figures, which take longer to draw than a small cell to measure; a module's own fixtures draw them."""

from __future__ import annotations

import pytest

from llava.eval.sweep import measure


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "write_figures", lambda *_: [])
