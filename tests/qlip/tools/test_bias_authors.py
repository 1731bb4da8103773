"""Bias measures in the authors' convention, against transformers' own CLIP with its projection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from qlip import Leaves, QLIPConfig, QLIPImageProcessor, QLIPVisionModel
from qlip.cli import main
from qlip.pretrained import load_projection, load_tower
from qlip.tools.bias import embed, interpolation_bias, measure, mesoscopic_bias, place_leaves
from qlip.tools.bias_config import BiasConfig
from tests.qlip.tools.test_bias import cosine, numeric_norm, picture, pixels
from tests.qlip.towers import NATIVE, make_clip, save_towers


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    save_towers(folder)
    return folder


def ours(clip: CLIPModel) -> QLIPVisionModel:
    return QLIPVisionModel(clip.vision_model, QLIPConfig(alpha=0.0, max_tokens=None)).requires_grad_(False)


@torch.no_grad()
def test_the_norm_is_that_of_finite_differences_by_all_rows_of_the_projected_embedding() -> None:
    native, small = make_clip().double(), make_clip(image_size=28).double()
    model, projection, image = ours(native), native.visual_projection.requires_grad_(False), pixels(28, 28).double()
    uniform = Leaves.uniform((4, 4))
    reference = embed(model, pixels(NATIVE, NATIVE, 1).double(), uniform, model.positions(uniform), projection)
    states = {name: value for name, value in native.state_dict().items() if "position_embedding" not in name}
    small.load_state_dict(states, strict=False)
    leaves = Leaves.uniform((2, 2))
    positions = place_leaves(model, leaves, "bicubic").double()

    def oracle(table: torch.Tensor) -> float:
        small.vision_model.embeddings.position_embedding.weight.copy_(table)
        return cosine(small.get_image_features(image[None]).pooler_output[0], reference)

    wanted = numeric_norm(oracle, torch.cat([model.cls_position, positions]))
    found = interpolation_bias(model, image, leaves, positions, reference, projection, by_cls=True)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found > interpolation_bias(model, image, leaves, positions, reference, projection) > 0


@torch.no_grad()
def test_the_cosine_is_that_of_clips_image_embeddings_without_positions() -> None:
    clip = make_clip()
    clip.vision_model.embeddings.position_embedding.weight.zero_()
    model, uniform = ours(clip), Leaves.uniform((4, 4))
    first, second = (clip.get_image_features(pixels(NATIVE, NATIVE, seed)[None]).pooler_output[0] for seed in (1, 2))
    found = mesoscopic_bias(model, pixels(NATIVE, NATIVE, 1), uniform, second, clip.visual_projection)
    assert found == pytest.approx(cosine(first, second), abs=1e-5)


def test_the_reference_is_the_central_square_whatever_the_shape(towers: Path) -> None:
    """At the native size the central square is its own reference, the whole picture is not; so it is with ours."""
    folder = str(towers / "whole")
    model, projection = load_tower(folder).requires_grad_(False), load_projection(folder)
    config = BiasConfig((NATIVE,), modes=("bicubic",), convention="authors")
    rows = measure(model, QLIPImageProcessor(), [picture(60, 90)], config, projection.requires_grad_(False))
    found = {(row.measure, row.shape): row.mean for row in rows}
    assert found["mesoscopic", "cropped"] == pytest.approx(1, abs=1e-5)
    assert found["interpolation", "cropped"] == pytest.approx(0, abs=1e-5)
    assert found["mesoscopic", "native"] < 0.99998
    assert found["interpolation", "native"] > 10 * found["interpolation", "cropped"]


def test_a_convention_and_a_projection_go_together(towers: Path) -> None:
    model, projection = load_tower(str(towers / "whole")), load_projection(str(towers / "whole"))
    for convention, given in (("authors", None), ("ours", projection)):
        config = BiasConfig((NATIVE,), convention=convention)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"'{convention}'.*visual_projection"):
            measure(model, QLIPImageProcessor(), [picture(60, 60)], config, given)
    with pytest.raises(ValueError, match="'theirs'"):
        BiasConfig(convention="theirs")  # type: ignore[arg-type]


def test_the_command_measures_in_the_authors_convention(towers: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "images").mkdir()
    Image.radial_gradient("L").save(tmp_path / "images" / "a.png")
    flags = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "bias.json"), "--sizes", "42", "--device"]
    given = [*flags, "cpu", "--convention", "authors"]
    assert main(["bias", "--tower", str(towers / "whole"), *given]) == 0
    results = json.loads((tmp_path / "bias.json").read_text())
    assert results["settings"]["convention"] == "authors"
    assert len(results["rows"]) == 2 * 3
    assert main(["bias", "--tower", str(towers / "siglip"), *given]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "visual_projection" in error and "--convention ours" in error
