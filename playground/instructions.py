"""Writes scenes as LLaVA's training data: `python -m playground.instructions --out DIR`.

DIR gets `images/`, `captions.json` for stage 1 (a caption of each scene) and `conversations.json` for stage 2
(questions about each scene in one to six turns, and some about a scene in words, without an image). Scenes with signs,
or without objects, are asked about in two to four turns of any kinds and in any order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.constants import DEFAULT_IMAGE_TOKEN
from playground.dialogue import ask, choose_kinds, full_listing
from playground.presets import NAMED_PRESETS, PRESETS, SceneSpec
from playground.questions import ASKED, Question, scene_questions
from playground.scenes import Scene, scene

IMAGES, CAPTIONS, CONVERSATIONS, SETTINGS = "images", "captions.json", "conversations.json", "instructions.json"
ASKED_IN_WORDS = ("colour", "shape", "relation", "count", "existence")
"""Kinds of the questions about a scene in words, which name its objects already."""
CAPTION_REQUEST = f"{DEFAULT_IMAGE_TOKEN}\nDescribe the picture."

Sample = dict[str, Any]


def write_instructions(folder: Path, spec: SceneSpec, seed: int, count: int, text_share: float = 0.1) -> None:
    """Writes `count` scenes of series `seed` as LLaVA's samples into `folder`; does nothing if they are there.

    Args:
        folder: where to write.
        spec: what the scenes are drawn from.
        seed: series of scenes.
        count: number of scenes, each with a caption and a conversation.
        text_share: samples without an image, as a share of `count`.
    """
    settings = {"spec": asdict(spec), "seed": seed, "count": count, "text_share": text_share}
    done = folder / SETTINGS
    if done.exists() and json.loads(done.read_text(encoding="utf-8")) == json.loads(json.dumps(settings)):
        return
    done.unlink(missing_ok=True)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with (
        (folder / CAPTIONS).open("w", encoding="utf-8") as captions,
        (folder / CONVERSATIONS).open("w", encoding="utf-8") as conversations,
        ProcessPoolExecutor(os.cpu_count()) as pool,
    ):
        samples = pool.map(partial(_write_scene, folder, spec, seed, text_share), range(count), chunksize=64)
        for number, (caption, *rest) in enumerate(samples):
            captions.write(f"{'[' if number == 0 else ','}\n{json.dumps(caption)}")
            conversations.write(
                "".join(f"{',' if number or at else '['}\n{json.dumps(s)}" for at, s in enumerate(rest))
            )
        for file in (captions, conversations):
            file.write("\n]\n")
    done.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _write_scene(folder: Path, spec: SceneSpec, seed: int, text_share: float, index: int) -> list[Sample]:
    """Writes a scene's image; returns its caption, its conversation and, for a share of the scenes, one in words."""
    made = scene(spec, seed, index)
    rng = np.random.default_rng((seed, index, 3))
    identity = f"{seed:06d}_{index:06d}"
    Image.fromarray(made.image).save(folder / IMAGES / f"{identity}.png", compress_level=1)  # a third of the time
    image = {"image": f"{identity}.png"}
    said = full_listing(made.objects, made.sign)
    asked = _ask(made, spec, ASKED, rng)
    samples = [
        {"id": identity, **image, "conversations": _turns([(CAPTION_REQUEST, said)])},
        {"id": identity, **image, "conversations": _turns(_opened(f"{DEFAULT_IMAGE_TOKEN}\n", asked))},
    ]
    if int((index + 1) * text_share) > int(index * text_share):
        turns = _turns(_opened(f"The picture shows {said}. ", _ask(made, spec, ASKED_IN_WORDS, rng)))
        samples.append({"id": f"{identity}_words", "conversations": turns})
    return samples


def _ask(made: Scene, spec: SceneSpec, kinds: Sequence[str], rng: np.random.Generator) -> list[Question]:
    """Asks about a scene: one to six of `kinds`, or any kinds where the spec's scenes may have signs or be empty."""
    if not spec.needs_dialogue:
        return scene_questions(made.objects, made.size, rng, _choose_kinds(kinds, rng))
    return [ask(kind, made.objects, made.sign, made.size, rng) for kind in choose_kinds(made.sign, rng)]


def _choose_kinds(kinds: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Chooses one to six of `kinds` in any order, but a listing last: later answers could be copied from it."""
    chosen = [kinds[place] for place in rng.permutation(len(kinds))[: rng.integers(1, 7)]]
    return sorted(chosen, key="listing".__eq__)


def _opened(opening: str, asked: Sequence[Question]) -> Iterator[tuple[str, str]]:
    """Yields requests and answers, the first request after `opening`."""
    for number, question in enumerate(asked):
        yield (opening if number == 0 else "") + question.text, question.answer


def _turns(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Formats requests and answers as the turns of a LLaVA sample."""
    return [
        {"from": speaker, "value": text} for pair in pairs for speaker, text in zip(("human", "gpt"), pair, strict=True)
    ]


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's flags."""
    parser = OneLineParser(prog="instructions", description="Write synthetic scenes as LLaVA's training data.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scenes", type=integer(), default=1000, help="number of scenes (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=1, help="series of scenes (%(default)s)")
    parser.add_argument(
        "--preset",
        choices=NAMED_PRESETS,
        default="base",
        metavar="NAME",
        help=f"kind of scenes: {', '.join(PRESETS)}, training, ... (%(default)s)",
    )
    parser.add_argument(
        "--text-share", type=real(most=1.0), default=0.1, help="samples without an image, a share of the scenes"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), command, argv)


def command(args: argparse.Namespace) -> None:
    """Writes what the flags describe."""
    write_instructions(args.out, NAMED_PRESETS[args.preset], args.seed, args.scenes, args.text_share)
    print(f"{args.scenes} scenes in {args.out}: {CAPTIONS}, {CONVERSATIONS}, {IMAGES}/")


if __name__ == "__main__":
    sys.exit(main())
