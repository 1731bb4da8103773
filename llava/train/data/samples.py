"""The samples of training files: indexed once, and read one at a time."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava.train.data.json_stream import Decoder, scan_items
from llava.train.data.sample import Sample, check_sample, count_words, parse_sample

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl")
"""Names of files that are taken from a folder, in any case."""
COMPRESSED = re.compile(r"\.jsonl?\.\w+$", re.IGNORECASE)

SHOWN = 5
"""Malformed samples that an error shows."""


class Samples(Sequence[Sample]):
    """The usable samples of some files, read from disk when they are asked for. Can be sent to other processes."""

    def __init__(self, files: Sequence[Path], rows: Sequence[array[int]], malformed: Sequence[str]) -> None:
        """See `open_samples`.

        Args:
            files: the files.
            rows: of each sample: its file, its number there, first byte, bytes, words.
            malformed: what is wrong with those left out.
        """
        self.files = list(files)
        self.malformed = tuple(malformed)
        """What is wrong with each sample that is left out, with its file, its number and the field."""
        self._file, self._number, self._start, self._size, words = (np.array(column, dtype=np.int64) for column in rows)
        self.words: npt.NDArray[np.int64] = words
        """(N,), see `count_words`; negative for samples without an image."""

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: Any) -> Any:
        """Reads a sample.

        Raises:
            ValueError: its file has changed since it was opened.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        # Opened for each sample: the object holds no handles that processes would share.
        with self.files[self._file[index]].open("rb") as file:
            file.seek(self._start[index])
            data = file.read(self._size[index])
        try:
            return parse_sample(Decoder().decode(data))
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: the file has changed since training began: {error}") from None

    def where(self, index: int) -> str:
        """Says where a sample is from: `FILE: sample 17`, counted from 0 in its file."""
        return f"{self.files[self._file[index]]}: sample {self._number[index]}"


def open_samples(
    path: str | Path, max_bad: int = 10, flag: str = "--data_path", exists: Callable[[str], bool] | None = None
) -> Samples:
    """Checks the samples of a JSON list, a file of JSON lines, or a folder of such files, and notes where they are.

    Reads every file once; a note of 40 bytes per sample is all that is kept.

    Args:
        path: the file, or the folder, whose files are taken in the order of their names.
        max_bad: malformed samples, which are logged and left out, and ones without their image file, which are left out
            when they are asked for; more are an error.
        flag: what names the path on the command line, for errors.
        exists: whether an image's path is there; None does not look.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: a file is damaged, or holds no samples; or too many of them are malformed or lack an image.
    """
    require_samples(path, flag)
    files = _find_files(Path(path), flag)
    rows = [array("q") for _ in range(5)]
    malformed: list[str] = []
    problems: list[str] = []
    for i, file in enumerate(files):
        for problem, is_malformed in _index_file(file, i, rows, exists):
            problems.append(problem)
            if is_malformed:
                logger.warning("left out: %s", problem)
                malformed.append(problem)
            if len(problems) > max_bad:
                too_many = f"more samples cannot be used than --max_bad_samples {max_bad} allows"
                raise ValueError(_summary(too_many, problems))
    if not rows[0]:
        raise ValueError(_summary(f"{path} holds no sample that can be used", malformed))
    logger.info("%s: samples: %d, left out: %d", path, len(rows[0]), len(malformed))
    return Samples(files, rows, malformed)


def require_samples(path: str | Path, flag: str) -> None:
    """Raises ValueError or FileNotFoundError unless a flag names a file or folder that is there."""
    if not str(path).strip():
        raise ValueError(f"{flag} is empty; name a file or folder of samples")
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}; {flag} names a file or folder of samples")


def find_relative_image(path: str | Path, flag: str) -> str | None:
    """Finds the first image that samples name relative to a folder; None if there is none. Reads no further.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: a file is damaged.
    """
    require_samples(path, flag)
    for file in _find_files(Path(path), flag):
        for item in scan_items(file):
            if item.error is None and isinstance(item.value, dict):
                named = item.value.get("image")
                for image in named if isinstance(named, list) else [named]:
                    if image and isinstance(image, str) and not Path(image).is_absolute():
                        return image
    return None


def _find_files(path: Path, flag: str) -> list[Path]:
    if path.is_dir():
        found = sorted(path.iterdir())
        files = [file for file in found if file.suffix.lower() in SUFFIXES and file.is_file()]
        if not files:
            raise FileNotFoundError(f"{path} holds no {' or '.join(SUFFIXES)} files; {flag} names a file or folder")
        if others := [file.name for file in found if file.is_dir() or COMPRESSED.search(file.name)]:
            logger.warning(
                "not read: %s in %s; its %s files are read, not those in folders or compressed ones",
                ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else ""),
                path,
                " and ".join(SUFFIXES),
            )
        return files
    return [path]


def _index_file(
    path: Path, number: int, rows: Sequence[array[int]], exists: Callable[[str], bool] | None
) -> Iterator[tuple[str, bool]]:
    """Appends the place of each sound sample of a file to `rows`.

    Yields what is wrong with others, True, and with those whose image is not there, False.
    """
    for i, item in enumerate(scan_items(path)):
        try:
            if item.error is not None:
                raise ValueError(item.error)
            images, _ = check_sample(item.value)
        except ValueError as error:
            yield f"{path}: sample {i}: {error}", True
            continue
        if exists is not None and (absent := [image for image in images if not exists(image)]):
            yield f"{path}: sample {i}: there is no image file {absent[0]}", False
        words = count_words(item.value)
        for column, entry in zip(rows, (number, i, item.start, item.size, words if images else -words), strict=True):
            column.append(entry)


def _summary(headline: str, malformed: Sequence[str]) -> str:
    more = "; ..." if len(malformed) > SHOWN else ""
    return f"{headline}: {'; '.join(malformed[:SHOWN])}{more}. Correct or remove them"
