"""What a sweep measures: its task, the cells that its flags ask for, and the file that finished cells stand in.

Knows settings and files, neither pictures nor loaded models.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llava.eval.run.jsonl import Rows, read_rows
from llava.eval.sweep.plots import Record
from llava.model.checkpoint import inspect, local_folder, require_tower
from llava.model.multimodal_encoder.builder import override_flag
from llava.model.multimodal_encoder.qlip_encoder import read_settings
from llava.utils import demo_model_path
from qlip import QLIPConfig

Cell = QLIPConfig | None
"""What is measured at once: settings, or None for the CLIP tower."""

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
    """What a cell is measured on; cells of one task can be compared."""

    model: str
    """Checkpoint folder or hub id."""

    model_base: str | None
    """Base of a LoRA or projector-only checkpoint."""

    quantised: str | None
    """"8bit", "4bit", or None."""

    conv_mode: str | None
    """Prompt format; None is the checkpoint's."""

    questions_sha256: str
    """Of the question file."""

    answers_sha256: str | None
    """Of the file of right answers, if there is one."""

    limit: int | None
    """Only this many questions, from the top of the file; None is all."""

    max_new_tokens: int
    """Longest answer."""


def make_task(options: Namespace) -> Task:
    """What the flags say will be measured on; a local checkpoint by its full path."""
    model = Path(options.model_path or demo_model_path())
    return Task(
        model=str(model.resolve()) if model.is_dir() else str(options.model_path),
        model_base=options.model_base,
        quantised="8bit" if options.load_8bit else "4bit" if options.load_4bit else None,
        conv_mode=options.conv_mode,
        questions_sha256=sha256(options.question_file.read_bytes()).hexdigest(),
        answers_sha256=options.answers_file and sha256(options.answers_file.read_bytes()).hexdigest(),
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
    )


def read_axes(options: Namespace) -> dict[str, list[Any]]:
    """The values of each setting that flags name, in the order of `QLIPConfig`.

    Raises:
        ValueError: a setting that there is not, one given twice, or a value of the wrong type.
    """
    given: list[tuple[str, list[str]]] = []
    for text in options.set:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=V1,V2, got {text!r}")
        given.append((name, values.split(",")))
    for name in ("alpha", "max_tokens", "image_size"):
        if (values := getattr(options, name)) is not None:
            given.append((name, values))
    axes: dict[str, list[Any]] = {}
    for name, texts in given:
        if name not in FIELD_TYPES:
            raise ValueError(f"unknown QLIP setting {name!r}; allowed are {', '.join(FIELD_TYPES)}")
        if name in axes:
            raise ValueError(f"{name} is given twice")
        axes[name] = [parse_value(name, text) for text in texts]
    return {name: axes[name] for name in FIELD_TYPES if name in axes}


def parse_value(name: str, text: str) -> Any:
    """The value of a QLIP setting, by the type of its field; `QLIPConfig` checks its range.

    Raises:
        ValueError: the text is no such value.
    """
    kind = FIELD_TYPES[name]
    kinds = (str,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    if text == "none" and type(None) in kinds:
        return None
    if name == "mlp":
        return str(Path(text).resolve())  # else it would be sought in the checkpoint's folder
    read = READERS[kinds[0]]
    try:
        return read(text)
    except (KeyError, ValueError):
        words = {bool: "true or false", int: "an integer", float: "a number"}[kinds[0]]
        or_none = " or none" if type(None) in kinds else ""
        raise ValueError(f"{name} is {text!r}; it must be {words}{or_none}") from None


def make_cells(options: Namespace, axes: dict[str, list[Any]]) -> list[Cell]:
    """CLIP's cell, then the product of the axes laid over the checkpoint's own settings; none twice.

    Raises:
        ValueError: nothing to measure, settings out of range, a prior that is not there, or a model without eyes.
    """
    cells: list[Cell] = [None] if options.clip else []
    if options.qlip:
        own = own_settings(str(options.model_path or demo_model_path()))
        cells += [replace(own, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    elif axes:
        raise ValueError(f"--no-qlip contradicts values of {', '.join(axes)}")
    if not cells:
        raise ValueError("--no-clip and --no-qlip leave nothing to measure")
    for cell in cells:
        if cell and cell.interpolation == "mlp" and not Path(str(cell.mlp)).is_file():
            raise ValueError(f"there is no MLP prior at {cell.mlp}")
    return list(dict.fromkeys(cells))


def own_settings(model_path: str) -> QLIPConfig:
    """The QLIP settings in a checkpoint's configuration, or the defaults; no weight is read."""
    checkpoint = inspect(local_folder(model_path))
    require_tower(checkpoint.config, model_path)
    override_flag(checkpoint.config, True)
    settings = read_settings(checkpoint.config.qlip) or QLIPConfig()
    return replace(settings, mlp=settings.mlp and str((checkpoint.folder / settings.mlp).resolve()))


def as_settings(cell: Cell) -> dict[str, Any] | None:
    """A cell as it stands in the results."""
    return None if cell is None else cell.to_dict()


def read_results(path: Path) -> tuple[list[Record], Rows]:
    """The finished cells, and the file as it is; a last line that a crash cut short is left out.

    Raises:
        ValueError: the file is not one that a sweep writes.
    """
    try:
        rows = read_rows(path, "cell of a sweep", _is_cell, begins_cell)
    except ValueError as error:
        raise ValueError(f"{error}; take the line out, or name another --out") from None
    records = []
    for number, record in rows.numbered:
        own = record["settings"]
        try:
            settings = None if own is None else QLIPConfig.from_dict(own).to_dict()  # of an older version
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number} is no cell of a sweep ({error}); take it out to go on") from None
        records.append(record | {"settings": settings})
    return records, rows


def begins_cell(line: bytes) -> bool:
    """Whether bytes are a beginning of a cell's line, which is JSON that opens with the task."""
    return line.startswith(_OPENING) or _OPENING.startswith(line)


def _is_cell(row: Record) -> bool:
    return isinstance(row.get("task"), dict) and "accuracy" in row and isinstance(row.get("settings"), dict | None)
