"""Trains LLaVA's two stages in three minutes on a CPU: `make train-demo`, or `python -m playground.train_demo`.

Language model and tower are those of the embedded model, and know nothing of each other: the projector between them
begins with random weights. Prints what the model answers before and after, and draws the losses.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from playground.presets import PRESETS
from playground.schedules import LlavaSchedule

if TYPE_CHECKING:
    from playground.examination import Examination, Examinee
    from playground.questions import Question
    from playground.recipe import LlavaRun

DEMO_STAGES = {
    "pretrain": LlavaSchedule(steps=100, rate=2e-3, batch=32),
    "finetune": LlavaSchedule(steps=300, rate=1e-3, batch=16),
}
EXAMINED = 20
"""Scenes that the model is examined on, not among those it is trained on."""
EXAMINATION_SEED = 9000
SHOWN = ("colour", "relation", "listing")
"""Kinds of the questions whose answers are printed."""


def train_demo(folder: Path, schedules: dict[str, LlavaSchedule], seed: int, examined: int) -> None:
    """Trains both stages and prints what they changed.

    Args:
        folder: gets parts, data, both stages' output folders, `loss.svg`, and an image that was not trained on.
        schedules: of "pretrain" and "finetune".
        seed: of scenes, projector and batches.
        examined: scenes to examine the model on.
    """
    from PIL import Image

    from llava.train.curve import draw_losses
    from playground.examination import Examinee, examination
    from playground.instructions import write_instructions
    from playground.parts import split_checkpoint
    from playground.recipe import LlavaRun

    begun = time.monotonic()
    run = LlavaRun(folder, seed)
    split_checkpoint(demo_model_path()).save(run.parts)
    scenes = max(schedule.steps * schedule.batch for schedule in schedules.values())
    write_instructions(run.data, PRESETS["base"], seed + 1, scenes)
    exam = examination(PRESETS["base"], EXAMINATION_SEED, examined)
    before = untrained(run, schedules["pretrain"]).answer_all(exam)
    for stage, schedule in schedules.items():
        run.train(stage, schedule)
    after = Examinee.load(run.stage_folder("finetune"), False, "cpu").answer_all(exam)
    print_answers(exam, before, after)
    Image.fromarray(exam.scenes[0].image).save(folder / "held-out.png")
    draw_losses([run.stage_folder(stage) for stage in schedules], folder / "loss.svg")
    print(f"image: {folder / 'held-out.png'}\nlosses: {folder / 'loss.svg'}")
    chat = ["python", "-m", "llava.serve.cli", "--model-path", str(run.stage_folder("finetune"))]
    print(f"chat with it: {shlex.join([*chat, '--image-file', str(folder / 'held-out.png')])}")
    print(f"{time.monotonic() - begun:.0f} seconds in all")


def untrained(run: LlavaRun, schedule: LlavaSchedule) -> Examinee:
    """Builds the model that stage 1 starts from."""
    from transformers import set_seed

    from llava.serve.engine import ChatEngine
    from llava.train.arguments import parse_arguments
    from llava.train.assemble import assemble
    from playground.examination import Examinee

    args = parse_arguments(run.flags("pretrain", schedule))
    set_seed(args.training.seed)
    tokenizer, model, _ = assemble(args)
    processor = model.get_vision_tower().image_processor
    return Examinee(ChatEngine(tokenizer, model.eval(), processor, model.config.context_length))


def print_answers(exam: Examination, before: list[list[str]], after: list[list[str]]) -> None:
    """Prints the answers about the first scene, and the share of right ones about all."""
    print(f"\nabout an image that shows {next(q.answer for q in exam.questions[0] if q.kind == 'listing')}:")
    for number, question in enumerate(exam.questions[0]):
        if question.kind in SHOWN:
            print(f"  {question.text}\n    right:  {question.answer}")
            print(f"    before: {before[0][number]}\n    after:  {after[0][number]}")
    shares = [right_share(exam.questions, answers) for answers in (before, after)]
    print(f"right answers about {len(exam.scenes)} images: {shares[0]:.0%} before, {shares[1]:.0%} after")


def right_share(questions: Sequence[Sequence[Question]], answers: Sequence[Sequence[str]]) -> float:
    """Computes the share of right answers."""
    right = [
        said == item.answer
        for asked, row in zip(questions, answers, strict=True)
        for item, said in zip(asked, row, strict=True)
    ]
    return sum(right) / len(right)


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's flags."""
    parser = OneLineParser(prog="train_demo", description="Train LLaVA's two stages on synthetic scenes, in minutes.")
    parser.add_argument("--out", type=Path, default=Path("train-demo"), help="folder to write (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=0, help="of scenes, projector and batches (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=os.cpu_count(), help="CPU threads (%(default)s)")
    parser.add_argument("--pretrain-steps", type=integer(), default=DEMO_STAGES["pretrain"].steps, help="(%(default)s)")
    parser.add_argument("--finetune-steps", type=integer(), default=DEMO_STAGES["finetune"].steps, help="(%(default)s)")
    return parser


def command(args: argparse.Namespace) -> None:
    """Trains as the flags say."""
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("llava.serve").setLevel(logging.WARNING)  # advice for servers
    torch.set_num_threads(args.threads)
    steps = {"pretrain": args.pretrain_steps, "finetune": args.finetune_steps}
    schedules = {stage: replace(schedule, steps=steps[stage]) for stage, schedule in DEMO_STAGES.items()}
    train_demo(args.out, schedules, args.seed, EXAMINED)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), command, argv)


if __name__ == "__main__":
    sys.exit(main())
