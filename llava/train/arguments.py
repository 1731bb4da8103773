"""Parses the command line of training into LLaVA's three groups of arguments, and refuses contradictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import HfArgumentParser

from llava.command import OneLineParser
from llava.model.loading.files import read_json
from llava.train.checks import check_training_arguments
from llava.train.flags import DataArguments, ModelArguments, modernise
from llava.train.training_arguments import TrainingArguments

__all__ = ["DataArguments", "ModelArguments", "ParsedArguments", "TrainingArguments", "parse_arguments"]

logger = logging.getLogger(__name__)


class ParsedArguments(NamedTuple):
    """A parsed command line."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    given: frozenset[str]
    """Names of the flags that the command line has; a LLaVA checkpoint's own settings hold for the others."""


class _Parser(OneLineParser, HfArgumentParser):
    """transformers' parser of dataclasses, with errors of one line."""


_make_parser: Any = _Parser  # its signature is transformers', which type checkers do not see


def parse_arguments(argv: Sequence[str], program: str = "llava-train") -> ParsedArguments:
    """Parses a command line, old spellings included.

    Raises:
        ImportError: DeepSpeed is asked for, but not installed.
        ValueError: an unknown flag, a value out of range, or flags that contradict each other.
        SystemExit: a value is not a number, not a truth value, ...
    """
    arguments, settings, warnings = modernise(argv)
    for warning in warnings:
        logger.warning("%s", warning)
    given = frozenset(argument.removeprefix("--").replace("-", "_") for argument in arguments if argument[:2] == "--")
    groups: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = _make_parser(groups, prog=program, allow_abbrev=False)
    values = vars(parser.parse_args(arguments))
    if not torch.accelerator.is_available():
        if values["tf32"]:
            logger.warning("--tf32 is not read: this machine has no GPU")
            values["tf32"] = None
        values["use_cpu"] = True
    if values["deepspeed"] is not None and find_spec("deepspeed") is None:  # transformers' own message misspells it
        raise ImportError(
            '--deepspeed needs the package of this name: pip install ".[deepspeed]", or leave the flag out'
        )
    if values["deepspeed"] is not None:
        rate = None if values["mm_projector_lr"] == values["learning_rate"] else values["mm_projector_lr"]
        check_deepspeed(str(values["deepspeed"]), rate, given)
    if values["output_dir"] is None:
        raise ValueError("--output_dir is missing: the folder that checkpoints and the model are written to")
    values["run_name"] = values["run_name"] or values["output_dir"]
    if settings and values["qlip"] is False:
        raise ValueError(f"--qlip False contradicts --qlip.{min(settings)}")
    model, data, training = (
        group(**{item.name: values[item.name] for item in fields(group) if item.init}) for group in groups
    )
    if settings:
        model.qlip = settings
    check_training_arguments(model, data, training)
    use_one_gpu(training)
    return ParsedArguments(model, data, training, given)


def use_one_gpu(training: TrainingArguments) -> None:
    """Lets a process that was started without a launcher train on the first GPU alone.

    transformers would train on all by `nn.DataParallel`, which gives every replica all images of a batch, and some of
    its prompts.
    """
    if training.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible, and one process trains on the first; for all: torchrun --nproc-per-node %d -m"
            " llava.train.train ...",
            training.n_gpu,
            training.n_gpu,
        )
        training._n_gpu = 1


def check_deepspeed(file: str, projector_rate: float | None, given: frozenset[str]) -> None:
    """Checks that DeepSpeed's settings, a file or JSON itself, leave the learning rates to the flags.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or its optimizer would give the projector the rate of all other weights.
    """
    settings = json.loads(file) if file.lstrip().startswith("{") else read_json(Path(file))
    if projector_rate is not None and "optimizer" in settings:
        raise ValueError(
            f"--mm_projector_lr needs an optimizer of two learning rates, but {file} has its own 'optimizer', of one;"
            ' remove that from the file (with an offloaded optimizer, add "zero_force_ds_cpu_optimizer": false), or'
            " leave the flag out"
        )
    if "scheduler" in settings and "lr_scheduler_type" in given:
        logger.warning("--lr_scheduler_type is not used: %s has its own 'scheduler'", file)
