"""What a run needs is checked before its model is loaded, and reported once: the question file and the images.

An image counts as readable if its file exists and its header is of a format that the runner opens; pixels are not
decoded, so that a file that is cut short shows only when its question is asked. Knows neither models nor answers.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from llava.command import integer
from llava.eval.run.questions import Question, chunk
from llava.images import FORMATS

logger = logging.getLogger(__name__)

MISSING, UNREADABLE = "missing", "unreadable"
EXAMPLES = 2
THREADS = 16
"""Files are looked at side by side, since folders of images are often on a network."""


def add_input_flags(parser: Any) -> None:
    """Adds the flags that say how much of the input a run takes."""
    parser.add_argument("--num-chunks", type=integer(), default=1, help="cut the questions into N chunks", metavar="N")
    parser.add_argument("--chunk-idx", type=integer(0), default=0, metavar="I", help="and answer this one, from 0")
    parser.add_argument("--limit", type=integer(), metavar="N", help="answer only the first N questions of the chunk")
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="answer the other questions where images are missing or unreadable (default: answer none)",
    )


def check_question_file(path: Path) -> None:
    """Raises ValueError unless there is a question file."""
    if not path.exists():
        raise ValueError(f"there is no question file {path}; name it with --question-file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; --question-file must name a file")


def check_chunk(args: argparse.Namespace) -> None:
    """Raises ValueError if there is no chunk of that number."""
    if args.chunk_idx >= args.num_chunks:
        raise ValueError(f"--chunk-idx is {args.chunk_idx}; it must be below --num-chunks, which is {args.num_chunks}")


def wanted(args: argparse.Namespace, questions: Sequence[Question]) -> range:
    """The places of the questions that this run is to answer: those of its chunk, or the first of them (`--limit`)."""
    return chunk(questions, args.num_chunks, args.chunk_idx)[: args.limit]


def check_asked_images(args: argparse.Namespace, questions: Sequence[Question]) -> None:
    """Raises ValueError unless the images of this run's questions are there, or `--skip-unreadable` lets them go."""
    check_images((questions[i].image for i in wanted(args, questions)), args.image_folder, args.skip_unreadable)


def check_images(sources: Iterable[str | Path | None], folder: Path, skip: bool | None = None) -> None:
    """Reports images that are missing or unreadable, all at once.

    Args:
        sources: files and `data:` URLs of the questions; None for a question without an image.
        folder: where the files are.
        skip: the flag `--skip-unreadable`, with which this is only a warning; None for commands without it.

    Raises:
        ValueError: there are such images, or there is no folder of images.
    """
    images = list(dict.fromkeys(source for source in sources if source is not None))
    if not folder.is_dir() and any(isinstance(image, Path) for image in images):
        raise ValueError(f"there is no image folder {folder}; name it with --image-folder")
    with ThreadPoolExecutor(THREADS) as threads:
        faults = [(image, fault) for image, fault in zip(images, threads.map(find_fault, images), strict=True) if fault]
    if not faults:
        return
    parts = []
    kinds = {MISSING: "", UNREADABLE: f": not a readable image; broken, or not one of {', '.join(FORMATS)}"}
    for kind, reason in kinds.items():
        if own := [_name(image) for image, fault in faults if fault == kind]:
            parts.append(
                f"{len(own)} of {len(images)} pictures are {kind}, for example {' and '.join(own[:EXAMPLES])}{reason}"
            )
    report = "; ".join(parts)
    if not skip:
        other = "" if skip is None else ", or answer the other questions with --skip-unreadable"
        raise ValueError(f"{report}; check --image-folder{other}")
    logger.warning("%s; their questions stay without an answer", report)


def find_fault(source: str | Path) -> str | None:
    """Whether an image is missing or unreadable, by its header; None if it is neither."""
    try:
        if isinstance(source, Path):
            if not source.is_file():
                return MISSING
            with Image.open(source, formats=FORMATS):
                return None
        with Image.open(BytesIO(base64.b64decode(source.partition(",")[2], validate=True)), formats=FORMATS):
            return None
    except Image.DecompressionBombError:
        return None  # the runner has a bound of its own
    except (OSError, ValueError, SyntaxError, binascii.Error):
        return UNREADABLE


def _name(source: str | Path) -> str:
    """An image for people; of one inside a table only the beginning."""
    return os.fspath(source) if isinstance(source, Path) else f"{source[:40]}..."
