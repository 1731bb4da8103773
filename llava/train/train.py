"""Trains LLaVA: `llava-train FLAGS`, or `python -m llava.train.train`; also under torchrun, accelerate and deepspeed.

Names that forks import from here are loaded when they are first used.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava.command import run_command
from llava.train.flags import format_help, modernise

if TYPE_CHECKING:
    from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)

_HOMES = {
    "DataArguments": "llava.train.flags",
    "DataCollatorForSupervisedDataset": "llava.train.data.dataset",
    "LLaVATrainer": "llava.train.llava_trainer",
    "LazySupervisedDataset": "llava.train.data.dataset",
    "ModelArguments": "llava.train.flags",
    "TrainingArguments": "llava.train.arguments",
    "find_all_linear_names": "llava.train.lora",
    "make_supervised_data_module": "llava.train.data.dataset",
    "preprocess": "llava.train.data.dataset",
    "preprocess_multimodal": "llava.train.data.dataset",
    "safe_save_model_for_hf_trainer": "llava.train.saving",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> LLaVATrainer:
    """Trains as a command line says, from the last checkpoint in the output folder if there is one.

    Args:
        attn_implementation: of the language model where the flag is not given; None is transformers' default.
        argv: the flags; by default those of this process.

    Returns:
        The trainer, after the model is saved.

    Raises:
        FileNotFoundError: a checkpoint or a file of samples is missing.
        ValueError: wrong flags, samples or checkpoints.
    """
    from llava.train.run import run  # here, since it loads torch and transformers

    return run(sys.argv[1:] if argv is None else list(argv), attn_implementation)


def set_up_logging(is_first: bool) -> None:
    """Logs to the terminal; a machine's other processes log only errors and warnings about their own data."""
    logging.basicConfig(level=logging.INFO if is_first else logging.ERROR, format="%(message)s")
    for name in ("llava.train.throughput", "llava.train.left_out", "llava.train.evaluation", "llava.eval.run"):
        logging.getLogger(name).setLevel(logging.INFO if is_first else logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return run_training(argv, None)


def run_training(argv: Sequence[str] | None, attn_implementation: str | None) -> int:
    """Runs the command line with an attention of the language model, see `train`; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    program = "llava-train"
    if {"-h", "--help"} & set(arguments):
        print(format_help(program), end="")
        return 0

    def work() -> None:
        modernise(arguments)  # wrong flags are reported before anything heavy is loaded
        set_up_logging(is_first=int(os.environ.get("LOCAL_RANK", "0")) == 0)
        from tqdm.contrib.logging import logging_redirect_tqdm  # not above: tqdm reads its settings as it is imported

        with logging_redirect_tqdm():  # lines do not run into the progress bar
            train(attn_implementation, arguments)

    return run_command(
        program,
        work,
        interrupted="stopped; the same command continues from the last checkpoint, if"
        " --output_dir has one (--save_steps)",
    )


if __name__ == "__main__":
    sys.exit(main())
