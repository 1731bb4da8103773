"""The settings that the paper's table is measured with, as checkpoints. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from llava.eval.score.rows import read_json
from llava.eval.score.score import write_json
from qlip import QLIPConfig

VARIANTS = ("clip", "qlip", "paper")
"""CLIP; QLIP's defaults, which need no sweep; the paper's rule, with a sweep over alpha and image size."""

PAPER = QLIPConfig.paper(max_tokens=2304)
"""The paper's rule; the budget keeps images with detail everywhere within the model's context."""


@dataclass(frozen=True)
class Run:
    """A tower with its settings."""

    tower: str
    """A tower of the table."""

    name: str
    """Names the files of its answers: unlike the names that a benchmark's script makes of its flags (`--qlip`), since
    a run continues only with the checkpoint and the settings it began with."""

    settings: str
    """Text for the table."""

    qlip: QLIPConfig | None
    """Written to the checkpoint's configuration; None for CLIP."""


def make_runs(variants: Sequence[str], alphas: Sequence[float], sizes: Sequence[int], prior: Path | None) -> list[Run]:
    """Makes the runs of some variants; the paper's rule once for each alpha and image size.

    Args:
        variants: of VARIANTS.
        alphas: of the paper's rule.
        sizes: shorter sides of its pictures, in pixels.
        prior: weights of the MLP prior for its positions; None interpolates bicubically.

    Raises:
        ValueError: an unknown variant, or a setting out of range.
    """
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ValueError(f"variant is {unknown[0]!r}; allowed are {', '.join(VARIANTS)}")
    defaults = QLIPConfig()
    text = f"{defaults.criterion}, alpha {defaults.alpha:g}, at most {defaults.max_tokens} tokens"
    runs = {"clip": [Run("CLIP", "clip", "", None)]}
    runs["qlip"] = [Run("QLIP", "qlip-defaults", f"defaults: {text}", defaults)]
    runs["paper"] = [_paper_run(alpha, size, prior) for alpha, size in product(alphas, sizes)]
    return [run for variant in VARIANTS if variant in variants for run in runs[variant]]


def _paper_run(alpha: float, size: int, prior: Path | None) -> Run:
    config = replace(PAPER, alpha=alpha, image_size=size)
    positions = config.interpolation
    if prior is not None:
        config = replace(config, interpolation="mlp", mlp=str(prior.resolve()), mlp_residual=False)
        positions = f"mlp-{prior.stem}"
    text = f"the paper's rule: {config.interpolation}, alpha {alpha:g}, {size} px"
    return Run("QLIP", f"paper-{positions}-alpha-{alpha:g}-{size}px", text, config)


def with_settings(checkpoint: Path, settings: QLIPConfig | None, folder: Path) -> Path:
    """Makes a folder of links to a checkpoint's files with these settings in its configuration.

    Raises:
        FileNotFoundError: the checkpoint has no config.json.
        ValueError: its config.json is damaged.
    """
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} has no config.json; expected a LLaVA checkpoint's folder")
    config = read_json(checkpoint / "config.json", dict)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.is_symlink():  # perhaps to another checkpoint's files
            link.unlink()
    for file in checkpoint.resolve().iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    write_json(folder / "config.json", config | {"qlip": False if settings is None else settings.to_dict()})
    return folder
