"""Shows three scenes that QLIP wins and three that it loses: `python -m scripts.bench.evidence.gallery`.

Writes docs/GALLERY.md and its pictures: each scene, and what each tower is given of it. The scenes are the first of the
test split, set after set, on which one tower lists all objects correctly and the other does not; nobody picks them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path, device_flag
from playground.questions import listing
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED, Variant

if TYPE_CHECKING:
    from PIL import Image

    from scripts.bench.evidence.answering.subject import Subject

QUESTION = "What is in the picture?"
SETS = ("12-24 px", "large", "noise 20", "24-48 px", "6-12 px", "48-96 px")
EACH = 3


@dataclass(frozen=True)
class Answered:
    """A scene with both answers."""

    name: str
    picture: Image.Image
    truth: str
    clip: str
    qlip: str
    tokens: tuple[int, int]
    """CLIP's and QLIP's."""


def answered_scenes(subject: Subject, name: str, count: int) -> Iterator[Answered]:
    """Asks about the first scenes of a set, encoded by CLIP and by QLIP."""
    from scripts.bench.evidence.answering.sets import draw_scene

    for index in range(count):
        picture, made = draw_scene(name, "test", index)
        said = [_answer(subject, way, picture) for way in (CLIP, SHIPPED)]
        texts, tokens = zip(*said, strict=True)
        yield Answered(f"{name}, scene {index}", picture, listing(made.objects), *texts, tokens)


def _answer(subject: Subject, way: Variant, picture: Image.Image) -> tuple[str, int]:
    from llava.eval.run.answerer import Answerer

    tokens = subject.encode_pictures(way, [picture])[0].tokens
    said = Answerer(subject.engine_of(way), max_new_tokens=40).answer([tokens], [(0, QUESTION)])
    return said[0], len(tokens.features)


def find(subject: Subject, scenes: int) -> tuple[list[Answered], list[Answered]]:
    """Finds scenes that QLIP wins and scenes that it loses, one of each set until there are enough."""
    from llava.eval.run.answerer import same_answer

    won: list[Answered] = []
    lost: list[Answered] = []
    for name in SETS:
        found = list(answered_scenes(subject, name, scenes))
        for side, good, bad in ((won, "qlip", "clip"), (lost, "clip", "qlip")):
            fitting = [s for s in found if same_answer(getattr(s, good), s.truth)]
            fitting = [s for s in fitting if not same_answer(getattr(s, bad), s.truth)]
            side += fitting[: min(1, EACH - len(side))]
    return won, lost


def draw_views(subject: Subject, item: Answered) -> Image.Image:
    """Draws a scene beside what each tower is given of it."""
    from scripts.bench.evidence.gallery.views import draw_clip_view, draw_qlip_view, join_views

    side = item.picture.height
    clip, qlip = subject.engine_of(CLIP), subject.engine_of(SHIPPED)
    square, processor = clip.prepare_images([item.picture])[0], clip.model.get_vision_tower().image_processor
    tower = qlip.model.get_vision_tower()
    tower.settings = subject.settings(SHIPPED)
    views = [
        (f"the picture, {item.picture.width} x {side} pixels", item.picture),
        (f"CLIP: {item.tokens[0]} tokens", draw_clip_view(square, processor, side)),
        (f"QLIP: {item.tokens[1]} tokens", draw_qlip_view(qlip.prepare_images([item.picture])[0], tower)),
    ]
    return join_views(views, side)


def write_page(subject: Subject, won: Sequence[Answered], lost: Sequence[Answered], document: Path) -> None:
    """Writes the page, and a picture of three views for each scene beside it."""
    from PIL import Image

    folder = document.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What the two towers see",
        "",
        f'`playground/llava-demo`, asked "{QUESTION}". The first scenes of the test split, set after set, on',
        "which one tower lists all objects from left to right and the other does not;",
        "`python -m scripts.bench.evidence.gallery` writes this page.",
        "Each picture, what CLIP's tower is given of it, and what QLIP's is: every leaf in the pixels of one patch.",
    ]
    number = 0
    for title, scenes in (("Won by QLIP", won), ("Lost by QLIP", lost)):
        lines += ["", f"## {title}"]
        for item in scenes:
            number += 1
            file = folder / f"scene-{number}.png"
            views = draw_views(subject, item)
            views.quantize(128, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)  # keeps rare colours
            lines += [
                "",
                f"![{item.name}: the picture, CLIP's view of {item.tokens[0]} tokens, QLIP's of {item.tokens[1]}]"
                f"({file.relative_to(document.parent)})",
                "",
                f"| {item.name} | tokens | answer |",
                "|---|---|---|",
                f"| truth | | {item.truth} |",
                f"| CLIP | {item.tokens[0]} | {item.clip} |",
                f"| QLIP | {item.tokens[1]} | {item.qlip} |",
            ]
    document.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{document} and its pictures")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="gallery", description="Write docs/GALLERY.md.")
    parser.add_argument("--model-path", default=demo_model_path())
    parser.add_argument("--scenes", type=integer(), default=60, help="scenes of each set to look through")
    parser.add_argument("--document", type=Path, default=Path("docs/GALLERY.md"))
    parser.add_argument("--device", type=device_flag, default=None)
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Finds the scenes and writes the page."""
    from llava.utils import default_device
    from scripts.bench.evidence.answering.subject import Subject

    subject = Subject(options.model_path, {}, options.device or default_device(), 4096)
    won, lost = find(subject, options.scenes)
    write_page(subject, won, lost, options.document)


if __name__ == "__main__":
    sys.exit(main())
