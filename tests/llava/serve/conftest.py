"""A picture to ask about."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.effect_noise((120, 80), 60).convert("RGB").save(path)
    return str(path)
