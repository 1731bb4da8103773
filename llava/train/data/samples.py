"""The samples of a training file: LLaVA's JSON, checked, and read one at a time.

A sample is {"id", optional "image": path or list of paths, "conversations": [{"from", "value"}, ...]}, where "from" is
"human" or "gpt" and "value" is text.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.text import check_encodable
from llava.train.data.json_stream import Decoder, scan_items

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl")
"""Names of files that are taken from a folder, in any case."""
COMPRESSED = re.compile(r"\.jsonl?\.\w+$", re.IGNORECASE)

SPEAKERS = ("human", "gpt")
"""Values of "from": who asks, and who answers."""

SHOWN = 5
"""Malformed samples that an error shows."""

UNREAD = ("video", "videos", "images", "audio")
"""Fields of other projects' samples: one of them without an image would teach answers about what is not seen."""


@dataclass(frozen=True)
class Sample:
    """One sample that can be trained on."""

    images: tuple[str, ...]
    """Paths, as the file has them."""
    turns: tuple[Mapping[str, str], ...]
    """{"from", "value"}: question, answer, question, answer, ..."""


def parse_sample(value: Any) -> Sample:
    """Checks a sample. A first answer without a question is dropped, as LLaVA does.

    Raises:
        ValueError: it cannot be used; names the field.
    """
    images, first = _check_sample(value)
    turns = value["conversations"][first:]
    return Sample(images, tuple({"from": turn["from"], "value": turn["value"]} for turn in turns))


def _check_sample(value: Any) -> tuple[tuple[str, ...], int]:
    """Checks a sample; finds its images, and the number of its first question."""
    if not isinstance(value, dict):
        raise ValueError(f"it is {_show(value)}; it must be an object with conversations")
    if "conversations" not in value:
        other = next((name for name in ("messages", "conversation", "text") if name in value), None)
        hint = f", not {other!r}" if other else ""
        raise ValueError(f'conversations is missing; it must be a list of {{"from", "value"}}{hint}')
    images = _parse_images(value.get("image"))
    if other := next((name for name in UNREAD if value.get(name) and not images), None):
        raise ValueError(f"{other} is given, which training does not read; allowed is image")
    turns = value["conversations"]
    if not isinstance(turns, list):
        raise ValueError(f'conversations is {_show(turns)}; it must be a list of {{"from", "value"}}')
    for i, turn in enumerate(turns):
        if not _is_plainly_sound(turn):
            _check_turn(turn, f"conversations[{i}]")
    first = 1 if turns and turns[0]["from"] == "gpt" else 0
    _check_order(turns, first)
    _check_tags(turns[first:], images, first)
    return images, first


def count_words(value: Mapping[str, Any]) -> int:
    """Counts the words of a sample's turns, a dropped first one included, as LLaVA does; at least 1."""
    return max(1, len(" ".join([turn["value"] for turn in value["conversations"]]).split()))


def _parse_images(value: Any) -> tuple[str, ...]:
    if value is None or value == "" or value == []:
        return ()
    paths, names = (
        (value, [f"image[{i}]" for i in range(len(value))]) if isinstance(value, list) else ([value], ["image"])
    )
    for path, name in zip(paths, names, strict=True):
        if not isinstance(path, str) or not path:
            raise ValueError(f"{name} is {_show(path)}; allowed are a path, a list of paths, and null")
        check_encodable(name, path)
        if "\0" in path:
            raise ValueError(f"{name} is {path!r}; a path has no null character")
    return tuple(paths)


def _is_plainly_sound(turn: Any) -> bool:
    """Passes sound turns in less time than `_check_turn`; a file has millions."""
    try:
        text = turn["value"]
        return turn["from"] in SPEAKERS and (text.isascii() or text.encode("utf-8") is not None)
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
        return False


def _check_turn(turn: Any, name: str) -> None:
    if not isinstance(turn, dict):
        raise ValueError(f'{name} is {_show(turn)}; it must be {{"from", "value"}}')
    for field in ("from", "value"):
        if field not in turn:
            raise ValueError(f"{name}.{field} is missing")
    if turn["from"] not in SPEAKERS:
        raise ValueError(f"{name}.from is {_show(turn['from'])}; allowed are 'human' and 'gpt'")
    if not isinstance(turn["value"], str):
        raise ValueError(f"{name}.value is {_show(turn['value'])}; it must be text")
    check_encodable(f"{name}.value", turn["value"])


def _check_order(turns: Sequence[Mapping[str, str]], first: int) -> None:
    """Checks that questions and answers alternate after the first `first` turns, and that an answer comes last."""
    if len(turns) == first:
        raise ValueError(
            f"conversations holds {'an answer only' if first else 'nothing'}; it must begin with a question"
        )
    for i, turn in enumerate(turns[first:]):
        if turn["from"] != (wanted := SPEAKERS[i % 2]):
            raise ValueError(
                f"conversations[{first + i}].from is {turn['from']!r}, like the turn before; it must be {wanted!r}:"
                " questions and answers alternate"
            )
    if turns[-1]["from"] != "gpt":
        raise ValueError(f"conversations[{len(turns) - 1}] is a question without an answer; add one from 'gpt'")


def _check_tags(turns: Sequence[Mapping[str, str]], images: Sequence[str], first: int) -> None:
    """Checks that every image has its `<image>` in a question.

    Several tags in the question of a single image are one, as for LLaVA. In a sample without images `<image>` is text,
    except where LLaVA's samples have the tag: at the start or end of a question.
    """
    tag = DEFAULT_IMAGE_TOKEN
    if not images:
        for i, turn in enumerate(turns[::2]):
            text = turn["value"].strip()
            if text.startswith(tag) or text.endswith(tag):
                raise ValueError(f"conversations[{first + 2 * i}].value has {tag}, but the sample has no image")
        return
    for i, turn in enumerate(turns[1::2]):
        if tag in turn["value"]:
            raise ValueError(f"conversations[{first + 2 * i + 1}].value has {tag}; only questions can hold an image")
    counts = {first + 2 * i: turn["value"].count(tag) for i, turn in enumerate(turns[::2]) if tag in turn["value"]}
    if not counts:
        raise ValueError(f"image is {_show(list(images))}, but no question holds {tag}; write it where the image goes")
    if len(images) == 1 and len(counts) > 1:
        places = " and ".join(f"conversations[{i}]" for i in counts)
        raise ValueError(f"{places} hold {tag}, but image is one path; write the tag once, or a path for each")
    if len(images) > 1 and sum(counts.values()) != len(images):
        raise ValueError(f"the questions hold {sum(counts.values())} {tag}, but image has {len(images)} paths")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    if not str(path).strip():
        raise ValueError(f"{flag} is empty; name a file or folder of samples")
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
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}; {flag} names a file or folder of samples")
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
            images, _ = _check_sample(item.value)
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
