"""Lengths of samples in the language model, measured before training and kept in a file for the next run."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.image_geometry import is_anyres
from llava.images import ImageError, read_size
from llava.mm_utils import find_tile_side
from llava.model.vision.anyres import joins_tiles, lay_out
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Preparer, Unreadable
from llava.train.left_out import LeftOutSamples, Skipped
from llava.train.throughput import Gather, gather_objects
from qlip.config import QLIPConfig
from qlip.cutting import CutOne, ImageCutter
from qlip.files import replacing
from qlip.images.pictures import without_pixel_limit
from qlip.patches import CutImage
from qlip.quadtree import Leaves

logger = logging.getLogger(__name__)

LENGTHS_FILE = "lengths.npz"

AT_ONCE = 32
"""Samples that a worker measures before it reports."""

PROBE = "  A few words,\ntwo  spaces </s>and <image> signs: é"
"""Text that tokenizers with the same vocabulary but different settings split differently."""

Lengths = np.ndarray[Any, np.dtype[np.int64]]


def measure_lengths(
    dataset: Any,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = gather_objects,
    folder: Path | None = None,
) -> Lengths:
    """Measures every sample's tokens in the language model, text and visual; every process must call it.

    Leaves are found but not cut out. For tiles only the image size is read; for a tower with a fixed number of tokens
    images are not opened.

    Args:
        dataset: a `LazySupervisedDataset`.
        workers: worker processes of each training process.
        rank: this process, which measures its share.
        world_size: processes.
        gather: collects one object per process.
        folder: where the lengths are kept. Those of the same samples under the same settings are read from there, but
            for samples that could not be used then.

    Returns:
        int64 (N,), 0 for samples that cannot be used.

    Raises:
        ValueError: more malformed and unreadable samples than `max_bad_samples` of the data set's arguments, or
            no sample that can be used.
    """
    file = None if folder is None else folder / LENGTHS_FILE
    mark = fingerprint(dataset) if file is not None and rank == 0 else ""
    known = _read(file, mark, len(dataset)) if file is not None and rank == 0 else None
    known = gather(known)[0]  # of the first process, whose folder has the file
    lengths = np.zeros(len(dataset), dtype=np.int64) if known is None else known.copy()
    wanted = (lengths == 0).nonzero()[0]
    shares = gather(_measure_share(dataset, wanted[rank::world_size], workers, gather, shows_progress=rank == 0))
    for number, share in enumerate(shares):
        lengths[wanted[number::world_size]] = share.lengths
    too_long = sum(share.too_long for share in shares)
    _log(lengths, too_long, None if known is None else file)
    if not lengths.any():
        example = next((f", for example {share.reason}" for share in shares if share.reason), "")
        raise ValueError(f"none of the {len(lengths)} samples can be used, {too_long} of them too long{example}")
    if file is not None and rank == 0 and len(wanted):
        _write(file, mark, lengths)
    return lengths


class Share(NamedTuple):
    """The samples that one process has measured."""

    lengths: Lengths
    too_long: int
    """How many are longer than the context."""
    reason: str
    """Why the first unusable sample can't be used; empty if all can."""


def _measure_share(dataset: Any, indices: Lengths, workers: int, gather: Gather, shows_progress: bool) -> Share:
    """Measures some samples, and raises ValueError where too many of all processes' are bad."""
    malformed = getattr(getattr(dataset, "samples", None), "malformed", ())
    left_out = LeftOutSamples(getattr(dataset.data_args, "max_bad_samples", 10), malformed)
    results = _measure(dataset, indices, workers)
    if shows_progress and len(indices):
        results = tqdm(results, "measuring samples", len(indices), delay=2)
    lengths: list[int] = []
    too_long, reason = 0, ""
    for result in results:
        if not isinstance(result, Skipped):
            lengths.append(result)
            continue
        lengths.append(0)
        reason = reason or result.reason
        if result.is_bad:
            left_out.add(result)
            left_out.check_bad()
        else:
            too_long += 1
    for counts in gather(left_out.take()):
        left_out.merge(counts)
    left_out.check_bad()
    return Share(np.array(lengths, dtype=np.int64), too_long, reason)


def _measure(dataset: Any, indices: Lengths, workers: int) -> Any:
    """Iterates over the lengths, or `Skipped`, of some samples."""
    loader: DataLoader[Any] = DataLoader(
        _Measured(without_pixels(dataset), indices),
        batch_size=AT_ONCE,
        num_workers=min(workers, -(-len(indices) // AT_ONCE)),
        collate_fn=_keep,
    )
    return (result for batch in loader for result in batch)


class _Measured(Dataset):
    """Lengths instead of samples: workers send numbers, not pixels."""

    def __init__(self, dataset: Any, indices: Lengths) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> int | Skipped:
        item = self.dataset[int(self.indices[number])]
        return item["skipped"] if "skipped" in item else count_tokens(item)


def count_tokens(item: Mapping[str, Any]) -> int:
    """Counts the tokens of a sample in the language model: text, and its images' instead of their placeholders."""
    return len(item["input_ids"]) - len(item["images"]) + item["visual_tokens"]


def without_pixels(dataset: Any) -> Any:
    """Copies a data set, to one whose images have their number of tokens and no pixels."""
    preparer = getattr(dataset, "preparer", None)
    if not isinstance(preparer, Preparer):
        return dataset
    counting: Any
    if preparer.settings is not None and type(preparer.processor) is ImageCutter:
        cutter = preparer.processor
        own = {field.name: getattr(cutter, field.name) for field in fields(cutter)}
        counting = replace(preparer, processor=_LeafCounter(**own))
    elif preparer.settings is None and not is_anyres(preparer.aspect_ratio):
        counting = _SameCount(preparer.native_tokens)
    elif preparer.settings is None and not getattr(preparer.processor, "keeps_aspect_ratio", False):
        counting = _TileCounter(preparer)
    else:
        return dataset
    lighter = copy.copy(dataset)
    lighter.preparer = counting
    return lighter


class _LeafCounter(ImageCutter):
    """Finds an image's leaves, and does not cut them out."""

    def make_preparer(self, image: Image.Image) -> CutOne:
        find = self.make_finder(image)

        def count(settings: QLIPConfig, leaves: Leaves | None = None, bounded: bool = True) -> CutImage:
            return CutImage(find(settings, bounded)[1] if leaves is None else leaves, torch.empty(0))

        return count


@dataclass(frozen=True)
class _SameCount:
    """Gives every image the same number of tokens, unopened."""

    tokens: int

    def __call__(self, source: Any) -> PreparedImage:
        return PreparedImage(torch.empty(0), None, self.tokens, self.tokens, self.tokens, (0, 0))


@dataclass(frozen=True)
class _TileCounter:
    """Counts an image's tokens from its size, as tiles are planned and joined; reads the file's header only."""

    preparer: Preparer

    def __call__(self, source: Any) -> PreparedImage | Unreadable:
        own = self.preparer
        try:
            with without_pixel_limit():
                size = read_size(source, own.limits)
        except ImageError as error:
            return Unreadable(str(error))
        side = find_tile_side(own.processor)
        layout = lay_out(own.tiling, size, side)
        if not joins_tiles(own.tiling):
            tokens = own.native_tokens * (1 + layout.rows * layout.cols)
            return PreparedImage(torch.empty(0), None, tokens, tokens, tokens, (side, side))
        tokens = layout.count(math.isqrt(own.native_tokens))
        return PreparedImage(torch.empty(0), None, tokens, tokens, tokens, (side, side), tiles=layout)


def fingerprint(dataset: Any) -> str:
    """Computes a digest of all that lengths depend on, except for the image files."""
    args, template, tokenizer = dataset.data_args, dataset.template, dataset.tokenizer
    stats = [(str(file.resolve()), file.stat()) for file in dataset.samples.files]
    facts = {
        "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        "settings": [
            str(getattr(args, name, None))
            for name in ("image_folder", "is_multimodal", "mm_use_im_start_end", "image_aspect_ratio")
        ],
        "template": [
            str(getattr(template, name)) for name in ("version", "system", "roles", "sep_style", "sep", "sep2")
        ],
        "preparer": repr(dataset.preparer),
        "max_length": dataset.max_length,
        "tokenizer": [type(tokenizer).__name__, tokenizer(PROBE)["input_ids"], sorted(tokenizer.get_vocab().items())],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(file: Path, mark: str, count: int) -> Lengths | None:
    """Reads the lengths, if the file has those of this fingerprint."""
    try:
        with np.load(file) as saved:
            lengths = saved["lengths"]
            return lengths if str(saved["fingerprint"]) == mark and lengths.shape == (count,) else None
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
        logger.warning("%s cannot be read, and samples are measured again: %s", file, error)
        return None


def _write(file: Path, mark: str, lengths: Lengths) -> None:
    """Replaces the file atomically; a crash leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new, new.open("wb") as stream:
        np.savez(stream, lengths=lengths, fingerprint=np.array(mark))


def _log(lengths: Lengths, too_long: int, source: Path | None) -> None:
    unusable = int((lengths == 0).sum())
    used = lengths[lengths > 0]
    logger.info(
        "%s samples%s: %s tokens, %s at most in a sample; %d left out, %d of them too long",
        f"{len(lengths):,}",
        "" if source is None else f" (lengths from {source})",
        f"{int(used.sum()):,}",
        f"{int(used.max(initial=0)):,}",
        unusable,
        too_long,
    )


def _keep(batch: list[Any]) -> list[Any]:
    return batch
