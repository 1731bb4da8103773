"""The grid of a sweep: its task, the cells that its flags name, and the file of finished cells."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llava.eval.run.answerer import right_letters
from llava.eval.run.answers.jsonl import Rows, read_rows
from llava.eval.run.answers.metadata import checkpoint_hash, quantisation_name
from llava.eval.run.inputs.questions import Question
from llava.eval.sweep.plots import Record
from llava.model.loading.checkpoint import inspect, require_tower
from llava.model.loading.files import hash_files
from llava.model.loading.folder import local_folder
from llava.model.multimodal_encoder.builder import override_flag
from llava.model.multimodal_encoder.qlip_encoder import read_settings
from llava.serve.loading import QLIP_FLAGS
from llava.utils import demo_model_path
from qlip import QLIPConfig

Cell = QLIPConfig | None
"""QLIP's settings, or None for the CLIP tower."""

FIELD_TYPES = get_type_hints(QLIPConfig)
_OPENING = b'{"task": {"model": '
READERS: dict[type, Callable[[str], Any]] = {
    bool: {"true": True, "false": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}


@dataclass(frozen=True)
class Task:
    """The model and the questions of a sweep; cells of one task can be compared."""

    model: str
    """Checkpoint folder or hub id."""

    model_base: str | None
    """Base of a LoRA or projector-only checkpoint."""

    checkpoint: str
    """Hash of the files of both, see `hash_files`."""

    quantised: str | None
    """"8bit", "4bit", or None."""

    conv_mode: str | None
    """Prompt format; None is the checkpoint's."""

    questions_sha256: str
    """Hash of the question file."""

    image_folder: str
    """Folder of the images, whose content is not compared."""

    answers_sha256: str | None
    """Hash of the file of right answers, if there is one."""

    limit: int | None
    """Number of questions from the start of the file; None is all."""

    max_new_tokens: int
    """Longest answer."""

    by_letter: bool = False
    """Whether answers are judged by the letters of options, which earlier versions did not do."""


def make_task(args: Namespace, questions: Sequence[Question] = ()) -> Task:
    """Builds the task of the flags and its questions; local checkpoints are named by their full paths."""
    return Task(
        model=_full_name(args.model_path or demo_model_path()),
        model_base=args.model_base and _full_name(args.model_base),
        checkpoint=checkpoint_hash(args.model_path, args.model_base),
        quantised=quantisation_name(args),
        conv_mode=args.conv_mode,
        questions_sha256=sha256(args.question_file.read_bytes()).hexdigest(),
        image_folder=str(args.image_folder.resolve()),
        answers_sha256=args.answers_file and sha256(args.answers_file.read_bytes()).hexdigest(),
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        by_letter=any(right_letters(question.text, str(question.answer)) for question in questions),
    )


def _full_name(model: str | Path) -> str:
    """Names a checkpoint by its folder's full path, or by its hub id."""
    return str(Path(model).resolve()) if Path(model).is_dir() else str(model)


def read_axes(args: Namespace) -> dict[str, list[Any]]:
    """Reads the values of each setting that the flags name, in the order of `QLIPConfig`.

    Raises:
        ValueError: an unknown setting, one given twice, or a value of the wrong type.
    """
    given: list[tuple[str, list[str]]] = []
    for text in args.set:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=V1,V2, got {text!r}")
        given.append((name, values.split(",")))
    for name in QLIP_FLAGS:
        if (values := getattr(args, name)) is not None:
            given.append((name, values if isinstance(values, list) else [str(values)]))
    axes: dict[str, list[Any]] = {}
    for name, texts in given:
        if name not in FIELD_TYPES:
            raise ValueError(f"unknown QLIP setting {name!r}; allowed are {', '.join(FIELD_TYPES)}")
        if name in axes:
            raise ValueError(f"{name} is given twice")
        axes[name] = [parse_value(name, text) for text in texts]
    return {name: axes[name] for name in FIELD_TYPES if name in axes}


def parse_value(name: str, text: str) -> Any:
    """Parses the value of a QLIP setting by the type of its field; `QLIPConfig` checks its range.

    Raises:
        ValueError: the text is not such a value.
    """
    kind = FIELD_TYPES[name]
    kinds = (str,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    if text == "none" and type(None) in kinds:
        return None
    if name == "mlp":
        return str(Path(text).resolve())  # a relative path would refer to the checkpoint's folder
    read = READERS[kinds[0]]
    try:
        return read(text)
    except (KeyError, ValueError):
        words = {bool: "true or false", int: "an integer", float: "a number"}[kinds[0]]
        or_none = " or none" if type(None) in kinds else ""
        raise ValueError(f"{name} is {text!r}; it must be {words}{or_none}") from None


def make_cells(args: Namespace, axes: dict[str, list[Any]]) -> list[Cell]:
    """Makes CLIP's cell, then the product of the axes over the checkpoint's own settings, without duplicates.

    Raises:
        ValueError: nothing to measure, settings out of range, a missing prior, or a text-only model.
    """
    cells: list[Cell] = [None] if args.clip else []
    if args.qlip:
        own = read_own_settings(str(args.model_path or demo_model_path()))
        cells += [replace(own, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    elif axes:
        raise ValueError(f"--no-qlip contradicts values of {', '.join(axes)}")
    if not cells:
        raise ValueError("--no-clip and --no-qlip leave nothing to measure")
    for cell in cells:
        if cell and cell.interpolation == "mlp" and not Path(str(cell.mlp)).is_file():
            raise ValueError(f"there is no MLP prior at {cell.mlp}")
        if cell and cell.budget == "question":
            raise ValueError(
                "a sweep encodes each image once for all its questions, so budget can't be 'question'; set it to"
                " 'score', or answer the questions with python -m llava.eval.model_vqa"
            )
    return list(dict.fromkeys(cells))


def read_own_settings(model_path: str) -> QLIPConfig:
    """Reads the QLIP settings in a checkpoint's configuration, or the defaults; reads no weights."""
    checkpoint = inspect(local_folder(model_path))
    require_tower(checkpoint.config, model_path)
    override_flag(checkpoint.config, True)
    settings = read_settings(checkpoint.config.qlip) or QLIPConfig()
    return replace(settings, mlp=settings.mlp and str((checkpoint.folder / settings.mlp).absolute()))


def to_settings(cell: Cell) -> dict[str, Any] | None:
    """Converts a cell to its form in the results."""
    return None if cell is None else cell.to_dict()


def hash_prior(settings: Mapping[str, Any] | None) -> str | None:
    """Hashes the file of the MLP prior that settings, as in the results, use; None without one, or if it has gone."""
    if settings is None or settings.get("interpolation") != "mlp" or not Path(str(settings["mlp"])).is_file():
        return None
    return hash_files([Path(str(settings["mlp"]))])


def is_current(record: Record) -> bool:
    """Whether a finished cell's prior, if any, is unchanged; a deleted file counts as unchanged."""
    now = hash_prior(record["settings"])
    return now is None or now == record.get("prior")


def read_results(path: Path) -> tuple[list[Record], Rows]:
    """Reads the finished cells, and the file's rows without a last line that a crash truncated.

    Raises:
        ValueError: no sweep wrote the file.
    """
    try:
        rows = read_rows(path, "a cell of a sweep", _is_cell, is_cell_start)
    except ValueError as error:
        raise ValueError(f"{error}; take the line out, or name another --out") from None
    records = []
    for number, record in rows.numbered:
        own = record["settings"]
        try:
            # An older version wrote fewer settings, and its budgets split by score.
            settings = None if own is None else QLIPConfig.from_dict({"split_order": "score"} | own).to_dict()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number} is not a cell of a sweep ({error}); take it out to continue") from None
        records.append(record | {"settings": settings, "task": {"by_letter": False} | record["task"]})
    return records, rows


def is_cell_start(line: bytes) -> bool:
    """Whether bytes begin a cell's line, which is JSON that starts with the task."""
    return line.startswith(_OPENING) or _OPENING.startswith(line)


def _is_cell(row: Record) -> bool:
    return isinstance(row.get("task"), dict) and "accuracy" in row and isinstance(row.get("settings"), dict | None)
