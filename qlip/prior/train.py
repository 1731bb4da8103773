"""Trains the MLP prior for positions (paper section 3.2) to a frozen tower.

Without images the prior is made exact on the tower's position table, in closed form. With images it is trained so that
an image's embedding ([CLS]'s output; SigLIP's attention head's) is the same at a larger size on a quadtree as at the
native size on the uniform grid.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
import torch.distributed.nn  # before a process group, which defaults of its functions would keep alive
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from qlip.config import Interpolation, QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.files import check_output, replacing
from qlip.image_processing import QLIPImageProcessor
from qlip.images.pictures import find_pictures, read_picture
from qlip.mlp import AUTHORS_BANDS, CoordinateMLP, authors_frequencies
from qlip.pretrained import load_image_processor, load_projection, load_tower
from qlip.prior.batches import PictureBatches
from qlip.prior.config import FitConfig
from qlip.prior.loss import PriorLoss, solve_last_layer

WARM_UP = 0.01
"""Share of the steps over which the learning rate rises."""

HELD_OUT = 56
"""About how many images are held out to report the consistency term on; at most a tenth."""

EVALUATION_BATCHES = 8
"""Held-out batches, at sizes and thresholds drawn as in training, that the report averages."""


class Consistency(NamedTuple):
    """The consistency term on held-out images."""

    before: float
    """The term of the prior before training."""
    after: float
    """The term of the trained prior."""
    bicubic: float
    """The term of the table interpolated bicubically, which needs no training."""


@dataclass(frozen=True)
class FitResult:
    """A trained prior and how well it fits; the same in every process."""

    prior: CoordinateMLP
    max_error: float
    """Largest absolute difference to the position table, over all entries."""
    mean_error: float
    """Mean absolute difference to the position table."""
    consistency: Consistency | None
    """None without images."""


def fit_prior(config: FitConfig) -> FitResult:
    """Trains a prior and writes it to `config.out`; called in every process that accelerate started.

    Raises:
        ValueError: no such tower or one of another kind, no such folder or no image that can be read, weights of
            another width, a checkpoint of another run, or one without `resume`, or a loss that is not finite.
        FileNotFoundError: there are no weights at `config.init`.
        OSError: `config.out` can't be written.
    """
    if not config.resume and config.checkpoint.exists():
        raise ValueError(f"{config.checkpoint} belongs to an unfinished run: resume it (--resume), or delete that file")
    paths = None if config.images is None else find_pictures(config.images)
    check_output("out", Path(config.out), paths or ())
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    tower = load_tower(config.tower)
    projection = load_projection(config.tower) if config.loss == "projected" and paths is not None else None
    objective = PriorLoss(make_prior(config, tower.position_table), tower, projection).to(accelerator.device)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    consistency = None
    if paths is not None:
        processor = load_image_processor(config.tower)
        batches, held_out = (make_batches(config, part, tower, processor, accelerator) for part in hold_out(paths))
        consistency = train(objective, batches, held_out, config, accelerator)
    with torch.no_grad():
        errors = objective.grid_errors()
    if accelerator.is_main_process:
        with replacing(config.out) as new:
            objective.prior.save(new)
        config.checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return FitResult(objective.prior, errors.max().item(), errors.mean().item(), consistency)


def make_prior(config: FitConfig, table: Tensor) -> CoordinateMLP:
    """Makes the prior that training starts from; without images it is the result."""
    if config.init is not None:
        prior = CoordinateMLP.load(config.init)
        if (width := prior.layers[-1].out_features) != table.shape[1]:
            raise ValueError(f"{config.init} gives embeddings of {width}, the tower has {table.shape[1]}")
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            frequencies = authors_frequencies(AUTHORS_BANDS) if config.frequencies == "authors" else None
            prior = CoordinateMLP(table.shape[1], frequencies=frequencies)
    if config.images is None or (config.init is None and config.exact_start):
        solve_last_layer(prior, table)
    return prior


def hold_out(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Splits images into those to train on and, evenly spread, those to report on; the same if there are too few."""
    chosen = paths[:: max(10, len(paths) // HELD_OUT)]
    apart = [path for path in chosen if read_picture(path) is not None]
    others = sorted(set(paths) - set(chosen))
    return others or apart, apart or others


def make_batches(
    config: FitConfig, paths: list[Path], tower: QLIPVisionModel, processor: Any, accelerator: Accelerator
) -> PictureBatches:
    """Makes this process's share of the batches, and sets how the tower cuts their images."""
    patch_size, n = tower.config.patch_size, tower.native_grid
    largest = config.largest_size or n * 5 // 3 * patch_size
    most = config.max_tokens or (largest // patch_size) ** 2
    tower.qlip = QLIPConfig.paper(criterion=config.criterion, max_tokens=most)
    return PictureBatches(
        paths,
        QLIPImageProcessor.from_clip(processor, patch_size, n * patch_size, tower.qlip),
        batch=config.batch,
        largest_size=largest,
        alpha=config.alpha,
        alpha_per=config.alpha_per,
        sizes=config.sizes,
        shape=config.shape,
        seed=config.seed,
        share=(accelerator.process_index, accelerator.num_processes),
    )


def train(
    objective: PriorLoss,
    batches: PictureBatches,
    held_out: PictureBatches,
    config: FitConfig,
    accelerator: Accelerator,
) -> Consistency:
    """Trains the objective's prior, from the checkpoint if there is one; reports on the held-out batches."""
    total = config.steps or config.epochs * batches.per_epoch
    adam = torch.optim.Adam(objective.prior.parameters(), config.lr)
    model, optimizer = accelerator.prepare(objective, adam)
    trained = {"prior": objective.prior, "optimizer": optimizer, "scaler": accelerator.scaler}
    run = {**config.run, "pictures": len(batches.paths)}
    if config.checkpoint.exists():
        start, before = load_checkpoint(config.checkpoint, trained, run)
    else:
        start, before = 0, evaluate(objective, held_out, accelerator)
    loader = DataLoader(batches, batch_size=None, sampler=range(start, total), num_workers=config.workers)
    main = accelerator.is_main_process
    with (
        open_log(config.log_dir if main else None) as log,
        tqdm(total=total, initial=start, disable=not main, delay=2) as bar,
    ):
        for step, batch in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * learning_rate_factor(step, total)
            terms = model(batch.to(accelerator.device))
            accelerator.backward(terms[0] + config.theta * terms[1])
            optimizer.step()
            optimizer.zero_grad()
            consistency, grid = accelerator.reduce(terms.detach(), "mean").tolist()
            if not math.isfinite(consistency + grid):
                raise ValueError(f"the loss is {consistency} + theta * {grid} at step {step}; try a lower lr")
            bar.set_postfix(consistency=f"{consistency:.4g}", grid=f"{grid:.5f}", refresh=False)
            bar.update()
            if log is not None:
                log.add_scalar("loss/consistency", consistency, step)
                log.add_scalar("loss/grid", grid, step)
            if main and (step + 1) % config.save_every == 0:
                save_checkpoint(config.checkpoint, trained, run, step + 1, before)
    after = evaluate(objective, held_out, accelerator)
    return Consistency(before, after, evaluate(objective, held_out, accelerator, "bicubic"))


@torch.no_grad()
def evaluate(
    objective: PriorLoss, batches: PictureBatches, accelerator: Accelerator, mode: Interpolation = "mlp"
) -> float:
    """Computes the mean consistency term over the first batches, the same ones at every call."""
    with accelerator.autocast():
        values = [objective.consistency(batches[i].to(accelerator.device), mode) for i in range(EVALUATION_BATCHES)]
    return accelerator.reduce(torch.stack(values).mean(), "mean").item()


def learning_rate_factor(step: int, total: int) -> float:
    """Computes the share of the highest learning rate at a step: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def save_checkpoint(path: Path, trained: dict[str, Any], run: dict[str, Any], step: int, before: float) -> None:
    """Writes what a run needs to continue at `step`, atomically: a crash leaves the old checkpoint."""
    states = {name: part.state_dict() for name, part in trained.items() if part is not None}
    with replacing(path) as new:
        torch.save({"run": run, "step": step, "before": before, "states": states}, new)


def load_checkpoint(path: Path, trained: dict[str, Any], run: dict[str, Any]) -> tuple[int, float]:
    """Restores the states; returns the next step and the consistency term before training.

    Raises:
        ValueError: the checkpoint is of a run with other settings, or another number of pictures.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        old = saved["run"]
    except (EOFError, KeyError, RuntimeError, TypeError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a checkpoint of `qlip fit`, or is damaged; delete it to start over") from error
    if changed := [f"{name} was {old.get(name)!r}, is {run[name]!r}" for name in run if old.get(name) != run[name]]:
        raise ValueError(f"{path} is of another run: {'; '.join(changed)}")
    for name, part in trained.items():
        if part is not None:
            part.load_state_dict(saved["states"][name])
    return saved["step"], saved["before"]


def open_log(folder: str | Path | None) -> AbstractContextManager[Any]:
    """Opens a TensorBoard writer; a null context for None.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if folder is None:
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("log_dir needs TensorBoard: pip install '.[train]'") from None
    return SummaryWriter(str(folder))
