"""Checks a run's question file and images before the model is loaded.

An image counts as readable if its file exists and its header is of a format that the runner opens. Pixels are not
decoded, so a truncated file shows only when its question is asked.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from llava.eval.run.inputs.questions import Question, select_indices
from llava.eval.score.choice import label_letter
from llava.eval.score.option_lists import find_listed_options
from llava.eval.score.parse import letters
from llava.images import FORMATS, ImageError, read_image
from qlip.images.limits import LOCAL_LIMITS, check_header
from qlip.images.pictures import BROKEN

logger = logging.getLogger(__name__)

MISSING = "missing"
UNREADABLE = f"not a readable image; it is broken, or not one of {', '.join(FORMATS)}"
BASE64 = "not the name of a file but base64 text; it needs data:image/png;base64, before it"
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/=]{100}")
EXAMPLES = 2
LONGEST_NAME = 200
"""Characters of an image's name in a message."""
THREADS = 16
"""Files are checked in parallel, since folders of images are often on a network."""


def read_inputs(args: argparse.Namespace, read: Callable[[argparse.Namespace], list[Question]]) -> list[Question]:
    """Reads the questions that the flags name.

    Raises:
        ValueError: the file is missing or not a question file, a question is empty, or there is no chunk of that
            number.
    """
    check_chunk(args)
    check_question_file(args.question_file)
    questions = read(args)
    check_texts(args.question_file, questions)
    return questions


def check_texts(path: Path, questions: Iterable[Question]) -> None:
    """Raises ValueError if a question of a file is empty."""
    for question in questions:
        if not question.text.strip():
            raise ValueError(f"{path}: question_id {question.question_id!r}: the question is empty")


def check_question_file(path: Path) -> None:
    """Raises ValueError unless the question file exists."""
    if not path.exists():
        raise ValueError(f"there is no question file {path}; name it with --question-file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; --question-file must name a file")


def check_chunk(args: argparse.Namespace) -> None:
    """Raises ValueError if there is no chunk of that number."""
    if args.chunk_idx >= args.num_chunks:
        raise ValueError(f"--chunk-idx is {args.chunk_idx}; it must be below --num-chunks, which is {args.num_chunks}")


def check_asked_images(args: argparse.Namespace, questions: Sequence[Question]) -> None:
    """Raises ValueError if images of this run's questions are missing or unreadable, unless `--skip-unreadable`."""
    asked = [questions[i] for i in select_indices(args, questions)]
    names = name_embedded(args.question_file, asked)
    check_images((question.image for question in asked), args.image_folder, args.skip_unreadable, names=names)


def name_embedded(path: Path, questions: Iterable[Question]) -> dict[str, str]:
    """Names the images that a question file itself holds, by the first question about each."""
    names: dict[str, str] = {}
    for question in questions:
        if isinstance(question.image, str):
            names.setdefault(question.image, f"that of question {question.question_id!r} in {path}")
    return names


def check_answered(path: Path, questions: Iterable[Question], remedy: str) -> None:
    """Checks that every question of a file can be judged; warns once of answers by letter to no options.

    Args:
        path: the file.
        questions: its questions.
        remedy: says how to give a question a right answer.

    Raises:
        ValueError: a question is empty or has no right answer.
    """
    questions = list(questions)
    check_texts(path, questions)
    if unknown := [question.question_id for question in questions if question.answer is None]:
        raise ValueError(f"{path}: question {unknown[0]!r} has no right answer; {remedy}")
    if unlisted := [question.question_id for question in questions if _lacks_option(question)]:
        logger.warning(
            "%s: the right answer to %d of %d questions is a letter that is not among the options that the question"
            ' lists, for example %r: only an answer equal to it is right; list options as lines, "A. text"',
            *(path, len(unlisted), len(questions), unlisted[0]),
        )


def _lacks_option(question: Question) -> bool:
    """Whether the right answer is a letter, and the question lists no such option."""
    letter = label_letter(str(question.answer))
    return letter in letters(26) and letter not in find_listed_options(question.text)


def check_images(
    sources: Iterable[str | Path | None],
    folder: Path,
    skip: bool | None = None,
    flag: str = "--image-folder",
    names: Mapping[str, str] | None = None,
) -> None:
    """Reports all images that are missing or unreadable.

    Args:
        sources: files and `data:` URLs of the questions; None for a question without an image.
        folder: the folder of the files.
        skip: the flag `--skip-unreadable`, with which this is only a warning; None for commands without it.
        flag: what names the folder on the command line, for errors.
        names: `data:` URL -> what to call that image in a message.

    Raises:
        ValueError: an image is missing or unreadable, or the folder is missing.
    """
    images = list(dict.fromkeys(source for source in sources if source is not None))
    if not folder.is_dir() and any(isinstance(image, Path) for image in images):
        raise ValueError(f"there is no image folder {folder}; name it with {flag}")
    with ThreadPoolExecutor(THREADS) as threads:
        faults = [(image, fault) for image, fault in zip(images, threads.map(find_fault, images), strict=True) if fault]
    if not faults:
        return
    names = names or {}
    report = "; ".join(_describe(faults, kind, len(images), names) for kind in sorted({fault for _, fault in faults}))
    if not skip:
        embedded = not any(isinstance(image, Path) for image, _ in faults)
        flag = "the file of questions, which holds them" if embedded else flag
        other = "" if skip is None else ", or answer the other questions with --skip-unreadable"
        raise ValueError(f"{report}; check {flag}{other}")
    logger.warning("%s; their questions stay without an answer", report)


def _describe(faults: Sequence[tuple[str | Path, str]], kind: str, count: int, names: Mapping[str, str]) -> str:
    """Says how many of `count` images have one kind of fault, with examples."""
    own = [names.get(str(image)) or shorten_name(image) for image, fault in faults if fault == kind]
    state, reason = (kind, "") if kind == MISSING else ("unreadable", f": {kind}")
    return f"{len(own)} of {count} images are {state}, for example {' and '.join(own[:EXAMPLES])}{reason}"


def find_fault(source: str | Path) -> str | None:
    """Finds whether an image is missing, or unreadable by its header; None if it is neither.

    Returns:
        `MISSING`, `BASE64`, `UNREADABLE`, or the limit that the header breaks.
    """
    try:
        if isinstance(source, Path):
            if not os.path.isfile(source):  # Path.is_file raises where the name is too long
                return BASE64 if _BASE64_TEXT.search(str(source)) else MISSING
            with source.open("rb") as file:
                _read_header(file)
        else:
            _read_header(BytesIO(read_image(source, LOCAL_LIMITS, allow_paths=False, allow_urls=False)))
    except Image.DecompressionBombError:
        return None  # the runner has its own bound
    except ImageError as error:
        return str(error)
    except BROKEN:
        return UNREADABLE
    return None


def _read_header(file: BinaryIO) -> None:
    check_header(file)
    with Image.open(file, formats=FORMATS):
        pass


def shorten_name(source: str | Path) -> str:
    """Names an image in a message; a `data:` URL, and base64 text that was taken for a file's name, is cut."""
    name = str(source)
    return name if len(name) <= LONGEST_NAME else f"{name[:60]}..."
