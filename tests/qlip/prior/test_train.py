"""`qlip fit`: what training changes and keeps, and that an interrupted run loses nothing."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import ViTConfig

import qlip.prior.train
from qlip import CoordinateMLP, Leaves, QLIPConfig, QLIPVisionModel
from qlip.cli import main
from qlip.images.pictures import find_pictures
from qlip.pretrained import load_image_processor, load_tower
from qlip.prior.config import RECIPES, FitConfig
from qlip.prior.loss import PriorLoss
from qlip.prior.train import fit_prior, hold_out, learning_rate_factor, make_batches, train
from tests.qlip.authors import make_authors_prior
from tests.qlip.towers import CLASSES, PATCH, SHAPE, WIDTH, coordinates, save_towers, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with three towers, one of them with CLIP's projection, a small prior and five pictures."""
    folder = tmp_path_factory.mktemp("fit")
    save_towers(folder)
    torch.manual_seed(1)
    CoordinateMLP(WIDTH, hidden=48, depth=2).save(folder / "small.safetensors")
    (folder / "images" / "class").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for i, size in enumerate([(60, 60), (80, 60), (60, 90), (100, 70), (70, 70)]):
        coarse = Image.fromarray(noise.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / "images" / "class" / f"{i}.png")
    return folder


def config(files, tmp_path, **changes) -> FitConfig:
    settings = {"init": files / "small.safetensors", "batch": 2, "steps": 2, "lr": 1e-3, "save_every": 2, **changes}
    kind = settings.pop("kind", "clip")
    return FitConfig(str(files / kind), tmp_path / "out.safetensors", files / "images", **settings)


@pytest.mark.parametrize("kind", CLASSES)
def test_without_pictures_the_prior_in_its_pure_form_is_the_table(files, tmp_path, kind):
    fitted = fit_prior(replace(config(files, tmp_path, kind=kind), images=None, init=None))
    settings = QLIPConfig(interpolation="mlp", mlp=str(tmp_path / "out.safetensors"), mlp_residual=False)
    tower = QLIPVisionModel.from_pretrained(str(files / kind), settings)
    skip = len(tower.cls_position)
    positions = tower.positions(Leaves.uniform((4, 4)))[skip:]
    torch.testing.assert_close(positions, tower.position_table, atol=1e-5, rtol=0)
    assert fitted.max_error == pytest.approx((positions - tower.position_table).abs().max().item(), abs=1e-6)
    assert fitted.consistency is None


@pytest.mark.parametrize("kind", CLASSES)
def test_training_lowers_the_loss_and_leaves_the_tower_bit_by_bit_as_it_was(files, tmp_path, kind):
    settings, accelerator = config(files, tmp_path, kind=kind, steps=12, lr=6e-3), Accelerator()
    tower, processor = load_tower(settings.tower), load_image_processor(settings.tower)
    before = copy.deepcopy(tower.state_dict())
    loss = PriorLoss(CoordinateMLP.load(settings.init), tower)
    batches = make_batches(settings, find_pictures(settings.images), tower, processor, accelerator)
    consistency = train(loss, batches, batches, settings, accelerator)
    assert consistency.after < 0.95 * consistency.before
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())
    assert not tower.training and not any(parameter.requires_grad for parameter in tower.parameters())


def test_bounds_follow_from_the_towers_native_size(files, tmp_path):
    tower, processor = load_tower(str(files / "clip")), load_image_processor(str(files / "clip"))
    batches = make_batches(config(files, tmp_path), find_pictures(files / "images"), tower, processor, Accelerator())
    assert batches.largest_cells == 6 and tower.qlip.max_tokens == 36  # 5/3 of 4 cells, rounded down; its square
    assert len(tower.partition(torch.randn(3, 6 * PATCH, 20 * PATCH))) <= 36


@pytest.mark.parametrize(("count", "apart"), [(1, 1), (5, 1), (60, 6), (5600, 56)])
def test_some_pictures_are_kept_from_training(monkeypatch, count, apart):
    monkeypatch.setattr(qlip.prior.train, "read_picture", lambda path: None if path.stem == "00010" else path)
    paths = [Path(f"{i:05}.png") for i in range(count)]
    training, held_out = hold_out(paths)
    assert len(held_out) == apart - (count == 60) and (count == 1 or not set(training) & set(held_out))
    assert set(training) | set(held_out) == set(paths) - ({paths[10]} if count == 60 else set())


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_killed_run_goes_on_to_the_same_weights(files, tmp_path, monkeypatch, recipe):
    recipe = {**RECIPES[recipe], "kind": "whole", "batch": 2, "steps": 4}
    whole = fit_prior(config(files, tmp_path, **recipe))

    def killed(step, total):
        if step == 3:
            raise KeyboardInterrupt
        return learning_rate_factor(step, total)

    settings = replace(config(files, tmp_path, **recipe), out=tmp_path / "killed.safetensors")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(qlip.prior.train, "learning_rate_factor", killed)
        fit_prior(settings)
    assert settings.checkpoint.exists() and not settings.out.exists()
    with pytest.raises(ValueError, match=r"killed\.checkpoint\.pt belongs to an unfinished run"):
        fit_prior(settings)
    with pytest.raises(ValueError, match=r"is of another run: lr was 0\.001, is 0\.01"):
        fit_prior(replace(settings, resume=True, lr=0.01))
    resumed = fit_prior(replace(settings, resume=True, workers=1))
    assert torch.equal(weights(resumed.prior), weights(whole.prior))
    assert resumed.consistency == whole.consistency
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.safetensors", "out.safetensors"]


def fit_as_process(rank: int, port: int, settings: FitConfig) -> None:
    """Trains as one of two processes, by the variables that `accelerate launch` and torchrun set for each."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    fitted = fit_prior(settings)
    assert PartialState().num_processes == 2
    torch.save(fitted.prior.state_dict(), f"{settings.out}.{rank}")


def test_two_processes_end_with_the_weights_of_one(files, tmp_path):
    """They share each batch, so only rounding may differ."""
    settings = config(files, tmp_path, batch=4, steps=2)
    alone = weights(fit_prior(settings).prior)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # a process that starts afresh imports for ten seconds
    processes = [fork.Process(target=fit_as_process, args=(rank, port, settings)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    states = [torch.load(f"{settings.out}.{rank}", weights_only=True) for rank in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    torch.testing.assert_close(weights(CoordinateMLP.load(settings.out)), alone, atol=1e-4, rtol=0)


def test_in_mixed_precision_the_prior_stays_in_float32(files, tmp_path):
    fitted = fit_prior(config(files, tmp_path, mixed_precision="bf16"))
    assert weights(fitted.prior).dtype == torch.float32
    assert fitted.consistency.bicubic > 0 and all(map(math.isfinite, fitted.consistency))


def test_weights_to_start_from_may_be_the_authors_pt(files, tmp_path):
    start = make_authors_prior(WIDTH)
    torch.save(start.state_dict(), tmp_path / "authors.pt")
    fitted = fit_prior(config(files, tmp_path, init=tmp_path / "authors.pt", lr=0.0))
    assert fitted.consistency.before == fitted.consistency.after
    with torch.no_grad():
        for prior in (fitted.prior, CoordinateMLP.load(tmp_path / "out.safetensors")):
            torch.testing.assert_close(prior(coordinates(5, 7)), start(coordinates(5, 7)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
def test_random_weights_start_exact_on_the_grid_unless_told_not_to(files, tmp_path, exact):
    fitted = fit_prior(config(files, tmp_path, init=None, exact_start=exact, steps=1, lr=0.0))
    assert (fitted.max_error < 1e-5) == exact


def test_the_learning_rate_rises_over_one_percent_and_falls_to_zero():
    factors = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(factors) == 1 and factors[505] == pytest.approx(0.5, abs=0.001) and 0 < factors[-1] < 1e-4
    assert learning_rate_factor(0, 1) == 1


def test_both_terms_are_logged_for_tensorboard(files, tmp_path):
    fit_prior(config(files, tmp_path, log_dir=tmp_path / "log"))
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    for name in ("loss/consistency", "loss/grid"):
        assert [event.step for event in log.Scalars(name)] == list(range(2))


def test_a_log_without_tensorboard_names_what_to_install(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"\[train\]"):
        fit_prior(config(files, tmp_path, log_dir=tmp_path / "log"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": -1.0}, "theta is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"alpha": (0.2, 0.1)}, r"alpha is \(0\.2, 0\.1\)"),
        ({"alpha": (-1.0, 0.1)}, "alpha is -1"),
        ({"out": "prior.pt"}, r"out is prior\.pt; its name must end in \.safetensors"),
        ({"epochs": 0}, "epochs is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"shape": "round"}, "shape is 'round'"),
        ({"mixed_precision": "int8"}, "mixed_precision is 'int8'"),
        ({"images": "/nowhere"}, "there is no folder /nowhere"),
        ({"largest_size": 42}, "largest_size is 42"),
        ({"lr": 1e30}, "the loss is .* try a lower lr"),
    ],
)
def test_bad_settings_are_refused(files, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit_prior(replace(config(files, tmp_path), **changes))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [("absent", "no tower can be loaded from .*absent"), ("vit", "is of type 'vit'; allowed are clip")],
)
def test_a_tower_that_is_not_there_or_of_another_kind_is_refused(files, tmp_path, kind, message):
    ViTConfig(**SHAPE).save_pretrained(files / "vit")
    with pytest.raises(ValueError, match=message):
        fit_prior(config(files, tmp_path, kind=kind))


def test_a_folder_at_the_weights_place_is_said_before_training(files, tmp_path):
    (tmp_path / "out.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="out .*out.safetensors is a folder; name a file"):
        fit_prior(config(files, tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut", {"weights": 1}, [1]], ids=["empty", "cut", "other", "list"])
def test_what_is_no_checkpoint_is_named(files, tmp_path, content):
    wanted = config(files, tmp_path, resume=True)
    if isinstance(content, bytes):
        wanted.checkpoint.write_bytes(content)
    else:
        torch.save(content, wanted.checkpoint)
    with pytest.raises(ValueError, match=f"{wanted.checkpoint} is not a checkpoint of `qlip fit`, or is damaged"):
        fit_prior(wanted)


def test_a_prior_of_another_width_is_refused(files, tmp_path):
    CoordinateMLP(8, hidden=8, depth=1).save(tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match="gives embeddings of 8, the tower has 32"):
        fit_prior(config(files, tmp_path, init=tmp_path / "narrow.safetensors"))


def test_the_command_trains_writes_and_reports(files, tmp_path, capsys):
    paths = {"tower": files / "clip", "images": files / "images", "init": files / "small.safetensors"}
    flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    out = tmp_path / "new" / "prior.safetensors"
    more = ["--batch", "2", "--steps", "2", "--lr", "1e-3", "--alpha", "0.05", "0.1", "--seed", "7"]
    assert main(["fit", *flags, "--out", str(out), *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["grid", "consistency", "prior"]
    settings = config(files, tmp_path, steps=2, alpha=(0.05, 0.1), seed=7)
    assert torch.equal(weights(CoordinateMLP.load(out)), weights(fit_prior(settings).prior))


def test_the_command_refuses_in_one_line(files, tmp_path, capsys):
    out = str(tmp_path / "prior.safetensors")
    assert main(["fit", "--tower", str(files / "clip"), "--out", out, "--theta", "-2"]) == 2
    assert "theta is -2.0" in (error := capsys.readouterr().err) and error.count("\n") == 1
    given = ["--init", str(files / "small.safetensors"), "--frequencies", "authors"]
    assert main(["fit", "--tower", str(files / "clip"), "--out", out, *given]) == 2
    assert "--frequencies authors and --init exclude each other" in capsys.readouterr().err
