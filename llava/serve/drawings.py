"""Drawings that `llava` writes: quadtrees of the pictures, and what an answer depended on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import qlip
from llava.command import format_error
from llava.serve.terminal import is_terminal
from qlip.files import is_same_file

if TYPE_CHECKING:
    from PIL import Image

    from llava.conversation import Conversation
    from llava.serve.engine import ChatEngine

QUADTREE = "--show-quadtree"
ATTRIBUTION = "--show-attribution"


def check_drawings(flags: dict[str, Path | None], sources: Sequence[str | Path]) -> None:
    """Raises ValueError unless each drawing can be written to its own file without replacing a picture.

    Args:
        flags: the file that each flag names, if it was given.
        sources: of the pictures.
    """
    from qlip.images.pictures import check_drawing_name

    written: dict[Path, str] = {}
    for flag, path in flags.items():
        if path is None:
            continue
        check_drawing_name(flag, path)
        for place in range(1, len(sources) + 1):
            target = drawing_path(path, place)
            if target.is_dir():
                raise ValueError(f"{flag} {target} is a folder; name a file")
            for source in sources:
                if is_same_file(target, Path(source)):
                    raise ValueError(f"{flag} would write to {target}, a picture of --image-file; name another file")
            if (other := written.setdefault(target.absolute(), flag)) != flag:
                raise ValueError(f"{flag} would write to {target}, which {other} writes, too; name another file")


def drawing_path(path: Path, place: int) -> Path:
    """Names the file of a picture's drawing; `place` counts from 1 and is part of the name from 2 on."""
    return path if place == 1 else path.with_stem(f"{path.stem}-{place}")


def write_quadtrees(engine: ChatEngine, images: Sequence[Image.Image], path: Path) -> None:
    """Draws each picture's leaves into a copy of it, in the file that `drawing_path` names.

    Where a question decides what is split, they are those of the unsplit picture, which is what it is asked about.

    Raises:
        ValueError: the model has no quadtree.
    """
    tower = engine.vision.quadtree_tower
    if tower is None:
        raise ValueError("--show-quadtree needs a model with a quadtree; add --qlip")
    for i, image in enumerate(images, start=1):
        target = drawing_path(path, i)
        prepared = engine.vision.prepare(image, tower.settings)
        qlip.draw_leaves(image, prepared.leaves).save(target)
        cost = f"{prepared.tokens} visual tokens"
        if prepared.question is not None:
            cost = f"{prepared.first_tokens} visual tokens, which the question splits to {prepared.tokens}"
        print(f"{target}: {cost}", file=sys.stderr)


def write_attributions(
    engine: ChatEngine,
    asked: Conversation,
    images: Sequence[Image.Image],
    answer: str,
    path: Path | None,
    first: int = 1,
) -> None:
    """Draws what an answer depended on into a copy of each picture, in the file that `drawing_path` names.

    Args:
        engine: has answered.
        asked: the conversation, which waits for the answer.
        images: of the conversation.
        answer: its text; nothing is drawn of an empty one.
        path: of the first picture's drawing; None draws nothing.
        first: the first picture's number, from 1.
    """
    if path is None:
        return
    if not answer:
        print("--show-attribution: the answer is empty, so nothing is drawn", file=sys.stderr)
        return
    explained = engine.explain(asked, images, answer)
    pairs = zip(explained.draw(images), explained.images, strict=True)
    for place, (drawing, part) in enumerate(pairs, start=first):
        target, row = drawing_path(path, place), int(part.weights.argmax())
        drawing.save(target)
        top, left, size = part.leaves.boxes[row].tolist()
        cells = f"{len(part.weights)} {'leaves' if engine.vision.quadtree_tower else 'cells'}"
        share = f"the greatest share, {part.weights[row]:.0%}, at row {top}, column {left}, {size} x {size} cells"
        print(f"{target}: {cells}; {share}", file=sys.stderr)


def try_to_write_attributions(
    engine: ChatEngine, asked: Conversation, images: Sequence[Image.Image], answer: str, path: Path | None
) -> None:
    """Calls `write_attributions` in a chat, which continues if the drawing fails or Ctrl-C stops it.

    Raises:
        KeyboardInterrupt: Ctrl-C where questions come from a file or a pipe.
        RuntimeError: the model fails for another reason than memory.
    """
    from llava.serve.engine.errors import ran_out_of_memory

    try:
        write_attributions(engine, asked, images, answer, path)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not ran_out_of_memory(error):
            raise
        print(f"llava: error: no attribution: {format_error(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        if not is_terminal():
            raise
        print("llava: no attribution: stopped", file=sys.stderr)
