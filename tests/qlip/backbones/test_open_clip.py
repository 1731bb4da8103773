"""What the adapter of open_clip reads and refuses, of a stand-in: open_clip need not be installed.

tests/qlip/integrations/test_attach_libraries.py attaches its real models.
"""

from __future__ import annotations

import pytest

import qlip
from tests.qlip.backbones.stand_ins import CLIP, make_open_clip, wrap_timm


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output_tokens": True}, "returns its tokens beside the embedding, as in CoCa"),
        ({"grid_size": (8, 2)}, "has a grid of 8 x 2 cells; QLIP needs a square grid"),
        ({"patch_size": (16, 8)}, "has patches of 16 x 8 pixels; QLIP needs square ones"),
    ],
)
def test_what_qlip_would_misread_is_refused(options, words):
    with pytest.raises(TypeError, match=f"VisionTransformer of open_clip {words}"):
        qlip.attach(make_open_clip(**options))


OWN, TRUNK = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ({"preprocess_cfg": {"mean": OWN[0], "std": OWN[1]}, "image_mean": [0.9] * 3, "image_std": [0.9] * 3}, OWN),
        ({"preprocess_cfg": {}, "image_mean": OWN[0], "image_std": OWN[1]}, OWN),  # of older releases
        ({}, TRUNK),
    ],
)
def test_images_are_normalised_as_open_clip_prepares_them_and_not_as_its_timm_tower_was(preprocessing, expected):
    model = wrap_timm(**preprocessing)
    model.visual.trunk.pretrained_cfg = {"mean": TRUNK[0], "std": TRUNK[1]}
    processor = qlip.attach(model)[1]
    assert (processor.image_mean, processor.image_std) == expected


@pytest.mark.parametrize("make", [lambda: CLIP(make_open_clip()), wrap_timm])
def test_detach_takes_the_model_that_attach_took(make):
    model = make()
    classes = [type(module) for module in model.modules()]
    attached, processor = qlip.attach(model)
    attached, processor = qlip.attach(attached, processor, alpha=0.5)
    assert [type(module) for module in model.modules()] != classes
    detached, plain = qlip.detach(attached, processor)
    assert (detached, plain) == (model, None)
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(TypeError, match="CLIP is not attached$"):
        qlip.detach(model)
