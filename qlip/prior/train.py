"""Trains the MLP prior for positions (paper section 3.2) to a frozen tower.

Without pictures the prior is made exact on the tower's position table, in closed form. With pictures it is trained so
that a picture's embedding ([CLS]'s output; SigLIP's attention head's) is the same at a larger size on a quadtree as at
the native size on the uniform grid. Knows no command line.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from qlip.backbones.pretrained import load_projection, load_tower
from qlip.config import Interpolation, QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.mlp import AUTHORS_BANDS, CoordinateMLP, authors_frequencies
from qlip.pictures import find_pictures, read_picture
from qlip.prior.batches import PictureBatches
from qlip.prior.config import FitConfig
from qlip.prior.loss import PriorLoss, solve_last_layer

WARM_UP = 0.01
"""Share of the steps in which the learning rate rises."""

HELD_OUT = 56
"""About how many pictures are kept from training to report the consistency term on; never more than a tenth."""

EVALUATION_BATCHES = 8
"""Batches of these pictures, at sizes and thresholds drawn as in training, that the report is a mean over."""


class Consistency(NamedTuple):
    """The consistency term on pictures of the folder that are kept from training."""

    before: float
    """Of the prior that training started from."""
    after: float
    """Of the trained prior."""
    bicubic: float
    """Of the table interpolated bicubically, which needs no training."""


@dataclass(frozen=True)
class FitResult:
    """A trained prior and how well it fits. The same in every process."""

    prior: CoordinateMLP
    max_error: float
    """Largest absolute difference to the position table, over all entries."""
    mean_error: float
    """Mean absolute difference to the position table."""
    consistency: Consistency | None
    """None where there were no pictures."""


def fit_prior(config: FitConfig) -> FitResult:
    """Trains a prior and writes it to `config.out`; in every process that accelerate started, if it did.

    Raises:
        ValueError: no such tower or one of another kind, no such folder or no picture that can be read, weights of
            another width, a checkpoint of another run or one that `resume` does not ask for, or a loss that is not
            finite.
        FileNotFoundError: there are no weights at `config.init`.
    """
    if not config.resume and config.checkpoint.exists():
        raise ValueError(f"{config.checkpoint} is of an unfinished run: resume it, or remove that file")
    paths = None if config.images is None else find_pictures(config.images)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    tower, processor = load_tower(config.tower)
    projection = load_projection(config.tower) if config.loss == "projected" and paths is not None else None
    objective = PriorLoss(initial_prior(config, tower.position_table), tower, projection).to(accelerator.device)
    consistency = None
    if paths is not None:
        batches, held_out = (make_batches(config, part, tower, processor, accelerator) for part in hold_out(paths))
        consistency = train(objective, batches, held_out, config, accelerator)
    with torch.no_grad():
        errors = objective.grid_errors()
    if accelerator.is_main_process:
        part = Path(config.out).with_suffix(".part")
        objective.prior.save(part)
        part.replace(config.out)
        config.checkpoint.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return FitResult(objective.prior, errors.max().item(), errors.mean().item(), consistency)


def initial_prior(config: FitConfig, table: Tensor) -> CoordinateMLP:
    """What training starts from; without pictures, the result."""
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
    """Pictures to train on, and others, evenly spread, to report on; the same where there are too few for both."""
    chosen = paths[:: max(10, len(paths) // HELD_OUT)]
    apart = [path for path in chosen if read_picture(path) is not None]
    others = sorted(set(paths) - set(chosen))
    return others or apart, apart or others


def make_batches(
    config: FitConfig, paths: list[Path], tower: QLIPVisionModel, processor: Any, accelerator: Accelerator
) -> PictureBatches:
    """This process's share of the batches of some pictures; sets how the tower cuts them."""
    patch_size, n = tower.config.patch_size, tower.native_grid
    largest = config.largest_size or n * 5 // 3 * patch_size
    most = config.max_tokens or (largest // patch_size) ** 2
    tower.qlip = QLIPConfig(criterion=config.criterion, coarsest="any", max_tokens=most)
    return PictureBatches(
        paths,
        QLIPImageProcessor(patch_size, n * patch_size, processor.image_mean, processor.image_std, tower.qlip),
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
    """Trains the objective's prior on batches, from the checkpoint on where there is one; reports on those held out."""
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
    with open_log(config.log_dir if main else None) as log, tqdm(total=total, initial=start, disable=not main) as bar:
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
    """The mean consistency term over the first batches, the same ones at every call."""
    with accelerator.autocast():
        values = [objective.consistency(batches[i].to(accelerator.device), mode) for i in range(EVALUATION_BATCHES)]
    return accelerator.reduce(torch.stack(values).mean(), "mean").item()


def learning_rate_factor(step: int, total: int) -> float:
    """The share of the highest learning rate at a step: a linear rise, then a half cosine down to 0 after the last."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (total - rise)))


def save_checkpoint(path: Path, trained: dict[str, Any], run: dict[str, Any], step: int, before: float) -> None:
    """Writes what a run needs to go on at `step`; a run that is killed meanwhile keeps its last checkpoint."""
    states = {name: part.state_dict() for name, part in trained.items() if part is not None}
    part = path.with_suffix(".part")
    torch.save({"run": run, "step": step, "before": before, "states": states}, part)
    part.replace(path)


def load_checkpoint(path: Path, trained: dict[str, Any], run: dict[str, Any]) -> tuple[int, float]:
    """Puts the states back; gives the next step and the consistency term before training.

    Raises:
        ValueError: the checkpoint is of a run with other settings, or another number of pictures.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    old = saved["run"]
    if changed := [f"{name} was {old.get(name)!r}, is {run[name]!r}" for name in run if old.get(name) != run[name]]:
        raise ValueError(f"{path} is of another run: {'; '.join(changed)}")
    for name, part in trained.items():
        if part is not None:
            part.load_state_dict(saved["states"][name])
    return saved["step"], saved["before"]


def open_log(folder: str | Path | None) -> AbstractContextManager[Any]:
    """A TensorBoard writer; gives None for None.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    if folder is None:
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("log_dir needs TensorBoard: pip install 'llava-qlip[train]'") from None
    return SummaryWriter(str(folder))
