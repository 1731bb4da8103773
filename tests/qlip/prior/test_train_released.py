"""`qlip fit --recipe released`: the settings of the authors' training script, by their published facts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import CLIPModel

from qlip import CoordinateMLP
from qlip.cli import main
from qlip.images.pictures import find_pictures
from qlip.pretrained import load_image_processor, load_projection, load_tower
from qlip.prior.batches import Batch
from qlip.prior.config import FitConfig
from qlip.prior.loss import PriorLoss
from qlip.prior.train import fit_prior, make_batches
from tests.qlip.towers import CLASSES, NATIVE, PATCH, WIDTH, coordinates, make_clip, save_towers, weights

SIZES = [(60, 60), (100, 70), (58, 84), (300, 60), (30, 44)]  # (width, height)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A whole CLIP, vision models without a projection, and pictures of noise."""
    folder = tmp_path_factory.mktemp("released")
    save_towers(folder)
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"images/{i}.png")
    return folder


def released(files, **changes) -> FitConfig:
    paths = {"tower": str(files / "whole"), "out": files / "out.safetensors", "images": files / "images"}
    return FitConfig.from_recipe("released", **{**paths, **changes})


def batches_of(files, **changes):
    settings = released(files, **changes)
    tower, processor = load_tower(settings.tower), load_image_processor(settings.tower)
    return make_batches(settings, find_pictures(settings.images), tower, processor, Accelerator())


def embeddings(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    found = model.get_image_features(pixels)
    found = found if isinstance(found, torch.Tensor) else found.pooler_output  # older transformers gave the tensor
    return found / found.norm(dim=1, keepdim=True)


@torch.no_grad()
def test_the_loss_is_the_mse_of_clips_image_embeddings_and_l1_on_the_table(files):
    """Oracle: CLIPModel.get_image_features, the second time built for larger images with a table read off the prior."""
    torch.manual_seed(0)
    native, larger, prior = make_clip(), make_clip(70), CoordinateMLP(WIDTH, hidden=16, depth=2)
    state, name = native.state_dict(), "vision_model.embeddings.position_embedding.weight"
    table = state[name]
    larger.load_state_dict({**state, name: torch.cat([table[:1], prior(coordinates(5, 5))])})
    references, images = torch.randn(3, 3, NATIVE, NATIVE), torch.randn(3, 3, 70, 70)
    expected = (embeddings(native, references) - embeddings(larger, images)).square().mean()
    grid = (prior(coordinates(4, 4)) - table[1:]).abs().mean()
    loss = PriorLoss(prior, load_tower(str(files / "whole")), load_projection(str(files / "whole")))
    terms = loss(Batch(references, list(images), [0.0] * 3, [0, 1, 2]))
    assert expected > 1e-4
    torch.testing.assert_close(terms, torch.stack([expected, grid]), atol=1e-7, rtol=1e-3)


def test_a_recipe_is_its_settings_and_what_is_given_is_laid_over_them():
    plain, theirs = FitConfig("t", "o.safetensors"), FitConfig.from_recipe("released", tower="t", out="o.safetensors")
    assert FitConfig.from_recipe("paper", tower="t", out="o.safetensors") == plain
    changed = {name: value for name, value in vars(theirs).items() if value != getattr(plain, name)}
    assert changed.pop("batch") == 4 * 14
    assert changed == {
        "frequencies": "authors", "criterion": "random", "alpha_per": "picture", "sizes": "own", "loss": "projected",
    }  # fmt: skip
    assert theirs.alpha == (0.0, 0.1) and theirs.theta == 1.0
    given = FitConfig.from_recipe("released", tower="t", out="o.safetensors", batch=8, loss="distance")
    assert (given.batch, given.loss, given.criterion) == (8, "distance", "random")
    with pytest.raises(ValueError, match="recipe is 'theirs'; allowed are 'paper', 'released'"):
        FitConfig.from_recipe("theirs", tower="t", out="o.safetensors")


def test_a_prior_starts_with_the_authors_48_bands(files, tmp_path):
    fitted = fit_prior(released(files, images=None, out=tmp_path / "prior.safetensors"))
    assert fitted.max_error < 1e-4
    shapes = [tuple(layer.weight.shape) for layer in fitted.prior.layers]
    assert shapes == [(1024, 194), *[(1024, 1024)] * 3, (WIDTH, 1024)]
    expected = torch.tensor([(math.pi * j) ** 2 for j in range(48)])
    torch.testing.assert_close(fitted.prior.frequencies, expected)


def test_every_picture_has_a_threshold_of_its_own(files):
    drawn = [batches_of(files, batch=5)[step] for step in range(8)]
    alphas = [alpha for batch in drawn for alpha in batch.alphas]
    assert len(alphas) == len(set(alphas)) == 40
    assert all(0 <= alpha < 0.1 for alpha in alphas) and min(alphas) < 0.01 and max(alphas) > 0.09


def test_pictures_keep_their_size_up_to_the_largest(files):
    """84 px, 6 cells, are the tiny tower's 560: 5/3 of its native size."""
    batches = batches_of(files, batch=5)
    assert batches.largest_cells == 6
    shapes = {tuple(image.shape[1:]) for image in batches[0].images}
    cells = {(4, 4), (4, 6), (6, 4), (1, 6), (3, 2)}  # rows, cols, of SIZES in order
    assert shapes == {(rows * PATCH, cols * PATCH) for rows, cols in cells}


@torch.no_grad()
def test_splits_are_drawn_again_for_every_picture_and_batch(files):
    """The same picture twice in a batch, and in the next: other trees. The same batch again: the same trees."""
    batches = batches_of(files, batch=5)
    seeds = [seed for step in range(8) for seed in batches[step].seeds]
    assert len(set(seeds)) == 40 and batches[3].seeds == batches_of(files, batch=5)[3].seeds
    tower, processor = load_tower(str(files / "whole")), load_image_processor(str(files / "whole"))
    make_batches(released(files), find_pictures(files / "images"), tower, processor, Accelerator())
    loss = PriorLoss(CoordinateMLP(WIDTH, hidden=16, depth=2), tower)
    image = torch.randn(3, 84, 84)
    terms = [loss.consistency(Batch(torch.zeros(1, 3, NATIVE, NATIVE), [image], [0.5], [seed])) for seed in (1, 2, 1)]
    assert terms[0] == terms[2] != terms[1]


def test_the_command_runs_the_recipe_and_flags_override_it(files, tmp_path, capsys):
    flags = ["--tower", str(files / "whole"), "--images", str(files / "images"), "--recipe", "released"]
    more = ["--batch", "2", "--steps", "1", "--lr", "1e-3", "--criterion", "gradient"]
    assert main(["fit", *flags, *more, "--out", str(tmp_path / "one.safetensors")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["grid", "consistency", "prior"]
    fitted = fit_prior(
        FitConfig(
            str(files / "whole"),
            tmp_path / "two.safetensors",
            files / "images",
            frequencies="authors",
            steps=1,
            batch=2,
            lr=1e-3,
            loss="projected",
            criterion="gradient",
            alpha_per="picture",
            sizes="own",
        )  # fmt: skip
    )
    assert torch.equal(weights(CoordinateMLP.load(tmp_path / "one.safetensors")), weights(fitted.prior))
    assert fitted.consistency.after != fitted.consistency.before


@pytest.mark.parametrize("kind", CLASSES)
def test_a_tower_without_a_projection_is_refused_in_one_line(files, tmp_path, capsys, kind):
    out = str(tmp_path / "prior.safetensors")
    flags = ["--tower", str(files / kind), "--images", str(files / "images"), "--out", out]
    assert main(["fit", *flags, "--recipe", "released"]) == 2
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if line.startswith("qlip: "))
    assert (
        f"{kind}, of type '{kind}" in line and "has no visual_projection.weight" in line and "--loss distance" in line
    )


def test_a_tower_without_a_projection_takes_the_loss_of_the_features(files, tmp_path):
    flags = ["--tower", str(files / "siglip"), "--images", str(files / "images"), "--recipe", "released"]
    more = ["--loss", "distance", "--batch", "1", "--steps", "1", "--out", str(tmp_path / "prior.safetensors")]
    assert main(["fit", *flags, *more]) == 0
