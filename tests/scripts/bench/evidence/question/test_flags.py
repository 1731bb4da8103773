"""Flags of the commands that ask about scenes over photographs."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from scripts.bench.evidence.question.flags import pixels


@pytest.mark.parametrize("text", ["9", "28-16", "0-9", "100-300", "a-b", ""])
def test_sizes_are_a_range_that_fits_into_a_scene(text):
    assert pixels("16-28") == (16, 28)
    with pytest.raises(ArgumentTypeError, match=f"{text!r} is not allowed; it must be LOW-HIGH, 1 to 224 pixels"):
        pixels(text)
