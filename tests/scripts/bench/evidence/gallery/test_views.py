"""Pictures of what each tower is given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scripts.bench.evidence.answering.variants import CLIP, Variant
from scripts.bench.evidence.gallery import views


def test_a_view_of_an_unsplit_picture_is_the_picture(subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the native size both towers are given the picture's own pixels."""
    monkeypatch.setattr(views, "draw_leaves", lambda canvas, leaves: canvas)
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    way = Variant("whole", {"alpha": 0.0, "max_tokens": None, "image_size": 112})
    engine = subject.engine_of(way)
    tower = engine.model.get_vision_tower()
    tower.settings = subject.settings(way)
    np.testing.assert_array_equal(views.draw_qlip_view(engine.prepare_images([picture])[0], tower), pixels)
    clip = subject.engine_of(CLIP)
    processor = clip.model.get_vision_tower().image_processor
    np.testing.assert_array_equal(views.draw_clip_view(clip.prepare_images([picture])[0], processor, 112), pixels)


def test_views_are_side_by_side_at_one_height() -> None:
    small, large = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (40, 20), "blue")
    sheet = views.join_views([("a", small), ("b", large)], 20)
    assert sheet.size == (20 + views.GAP + 40, 20 + views.CAPTION)
    assert sheet.getpixel((19, 19)) == (255, 0, 0)
    assert sheet.getpixel((20 + views.GAP, 0)) == (0, 0, 255)
