"""What a converted checkpoint was made from, in its folder `original`, and the way back to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.model.llava_arch import TOWER_NAMES
from llava.model.loading.checkpoint import Checkpoint, inspect
from llava.model.loading.files import weight_files, weight_shapes
from llava.model.loading.transformers_format import KEPT_FIELDS, TRANSFORMERS_NAMES
from scripts.checkpoints.weight_files import (
    EMBEDDINGS,
    HEAD,
    VOCABULARY,
    names_in,
    read_one,
    renamed,
    write,
    write_index,
)

ORIGINAL = "original"
NAMES_FILE = "weights.json"
PRIOR_KEY = "mlp"
BUFFERS = ("rotary_emb.inv_freq", "position_ids")
"""Endings of what models compute for themselves, and do not save again."""


def restore(checkpoint: Checkpoint, out: Path) -> None:
    """Writes what a converted checkpoint was made from, with the weights and the flag that it has now."""
    original = checkpoint.folder / ORIGINAL
    values = json.loads((original / "config.json").read_text())
    now = json.loads((checkpoint.folder / "config.json").read_text())
    kept = json.loads((original / NAMES_FILE).read_text())
    if (rows := count_rows(checkpoint)) != kept.get("rows", rows):
        raise ValueError(
            f"{checkpoint.folder} has {rows} rows of vocabulary and had {kept['rows']} when it was converted; remove"
            f" its folder {ORIGINAL}, and it is converted as it is now"
        )
    for file in original.iterdir():
        if file.name not in ("config.json", NAMES_FILE):
            shutil.copy(file, out)
    values.pop("qlip", None)
    values |= changed_settings(now, kept.get("settings", {}))
    (out / "config.json").write_text(json.dumps(values, indent=2))
    copy_prior(checkpoint, out)
    names = TOWER_NAMES if checkpoint.names is TRANSFORMERS_NAMES else TRANSFORMERS_NAMES
    place = {
        renamed(name, checkpoint.names): (file, name)
        for file in weight_files(checkpoint.folder)
        for name in names_in(file)
    }
    if checkpoint.config.tie_word_embeddings:
        place.setdefault(HEAD, place[EMBEDDINGS])  # of two equal tensors transformers writes one
    written: dict[str, str] = {}
    for file_name, own in kept["files"].items():
        tensors = {}
        for name in own:
            if (ours := renamed(name, names)) not in place:
                if ours.endswith(BUFFERS):
                    continue
                raise ValueError(f"{checkpoint.folder} no longer holds {ours!r}, of which {name!r} was made")
            tensor = read_one(*place[ours])
            tensors[name] = tensor[: kept["vocab_size"]] if ours in VOCABULARY else tensor
        write(out, file_name, tensors, written)
    write_index(out, written)


def changed_settings(now: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """Finds LLaVA's settings of a converted config.json that its original lacks: the flag, the template, which may come
    from the original's name, and what was changed since."""
    fixed = {name: now[name] for name in ("qlip", "conv_mode") if now.get(name) is not None}
    return fixed | {name: now.get(name) for name, value in written.items() if name != "qlip" and now.get(name) != value}


def keep_original(checkpoint: Checkpoint, out: Path) -> None:
    """Copies all small files of a checkpoint to its converted one in `out`, and notes what `restore` needs.

    That is which weights the original's files hold, and the converted rows of vocabulary and settings, by which it sees
    what has changed since.
    """
    folder = out / ORIGINAL
    folder.mkdir()
    for file in checkpoint.folder.iterdir():
        if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            shutil.copy(file, folder)
    config = json.loads((out / "config.json").read_text())
    notes = {
        "vocab_size": checkpoint.config.vocab_size,
        "files": {file.name: sorted(names_in(file)) for file in weight_files(checkpoint.folder)},
        "rows": count_rows(inspect(out)),
        "settings": {name: config.get(name) for name in (*KEPT_FIELDS, "image_aspect_ratio")},
    }
    (folder / NAMES_FILE).write_text(json.dumps(notes, indent=1))


def count_rows(checkpoint: Checkpoint) -> int:
    """Counts the rows of a checkpoint's input embeddings."""
    shapes = weight_shapes(checkpoint.folder, "")
    return next(shape[0] for name, shape in shapes.items() if renamed(name, checkpoint.names) == EMBEDDINGS)


def copy_prior(checkpoint: Checkpoint, out: Path) -> None:
    """Copies the MLP prior that the flag names, if it is beside or below the checkpoint's config.json."""
    flag = checkpoint.config.qlip
    name = flag.get(PRIOR_KEY) if isinstance(flag, dict) else None
    if name is None or Path(name).is_absolute() or not (checkpoint.folder / name).is_file():
        return
    if ".." in Path(name).parts:
        raise ValueError(
            f"the MLP prior {name} is outside of {checkpoint.folder}; copy it there, or name its whole path"
        )
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint.folder / name, out / name)
