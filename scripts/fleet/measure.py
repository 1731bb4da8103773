"""Measures the stages of a request on this machine: `python -m scripts.fleet.measure --out times.json`.

One request at a time for preparing; for the model, batches of several sizes, to which lines are fitted. Images are
noise, which a quadtree cuts to its whole budget. HTTP and the tokenizer are not part of it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.command import OneLineParser, integer, parse_and_run, require_parent
from llava.serve.loading import add_model_flags
from scripts.fleet.stages import StageTimes, write_times

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

SIZES = ((640, 480), (1280, 960), (2048, 1536))
ROWS = (1, 4, 16)
LENGTHS = (128, 512, 1024)
"""Tokens of prompts, and of contexts while decoding."""


def fit(features: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Fits seconds by a sum of features with factors that are at least 0, by least squares.

    A factor that would be negative is 0, and the others are fitted again.
    """
    columns, factors = list(range(len(features[0]))), [0.0] * len(features[0])
    table, target = np.array(features, dtype=float), np.array(seconds, dtype=float)
    while columns:
        scale = table[:, columns].max(0)
        found = np.linalg.lstsq(table[:, columns] / scale, target, rcond=None)[0] / scale
        if (found >= 0).all():
            for column, factor in zip(columns, found, strict=True):
                factors[column] = float(factor)
            break
        columns.remove(columns[int((found * scale).argmin())])
    return factors


def timed(work: Callable[[], Any], repeats: int, device: str) -> float:
    """Measures the fewest seconds of a call, after one that is not counted: what it takes where nothing disturbs it."""
    import torch

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure_images(engine: ChatEngine, repeats: int) -> tuple[list[float], list[float]]:
    """Measures (base, per megapixel) of preparing, and (base, per visual token) of encoding."""
    import torch
    from PIL import Image

    from llava.model.vision.encoding import encode_prepared
    from llava.model.vision.preparer import Preparer

    preparer = Preparer.of(engine.model.get_vision_tower())
    device, pixels = str(engine.model.device), np.random.default_rng(0)
    prepared, preparing, encoding = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            file = Path(folder) / f"{width}.jpg"
            Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, quality=90)
            preparing.append(([1, width * height / 1e6], timed(lambda file=file: preparer(file), repeats, "cpu")))
            prepared.append(preparer(file))
    with torch.inference_mode():
        for count in (1, 2, 4, 8):
            images = [prepared[1]] * count
            seconds = timed(lambda images=images: encode_prepared(engine.model, images), repeats, device)
            encoding.append(([1, sum(image.tokens for image in images)], seconds))
    return fit(*zip(*preparing, strict=True)), fit(*zip(*encoding, strict=True))


def measure_language(engine: ChatEngine, repeats: int) -> tuple[list[float], list[float]]:
    """Measures (base, per token) of prompts, and (base, per row, per token of context) of a step."""
    import torch
    from transformers import DynamicCache

    model = engine.model
    device, width = model.device, model.config.hidden_size
    prefill, decode = [], []

    def run(rows: int, length: int, cache: Any = None) -> Any:
        new = 1 if cache else length
        embeds = torch.zeros(rows, new, width, device=device, dtype=model.dtype)
        cache = cache or DynamicCache(config=model.config)
        positions = torch.arange(length - new, length, device=device).expand(rows, -1)
        mask = torch.ones(rows, cache.get_seq_length() + new, dtype=torch.int64, device=device)
        result = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        result.logits.argmax(-1).tolist()
        return cache

    longest = min(engine.context_len, model.config.max_position_embeddings) - 64
    with torch.inference_mode():
        for length in (min(length, longest) for length in LENGTHS):
            seconds = timed(lambda length=length: run(1, length), repeats, str(device))
            prefill.append(([1, length], seconds))
            for rows in ROWS:
                cache = run(rows, length)
                step = timed(
                    lambda rows=rows, cache=cache: run(rows, cache.get_seq_length() + 1, cache), repeats, str(device)
                )
                decode.append(([1, rows, rows * length], step))
    return fit(*zip(*prefill, strict=True)), fit(*zip(*decode, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="measure", description="Measures the stages of a request on this machine.")
    add_model_flags(parser)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--repeats", type=integer(), default=9, help="of each measurement (%(default)s)")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Loads the model, measures and writes the file."""
    import torch

    from llava.serve.loading import load_engine

    require_parent(args.out)
    engine = load_engine(args)
    prepare, encode = measure_images(engine, args.repeats)
    prefill, decode = measure_language(engine, args.repeats)
    engine.close()
    times = StageTimes(*prepare, *encode, *prefill, *decode)
    name = torch.cuda.get_device_name() if engine.model.device.type == "cuda" else platform.machine()
    write_times(args.out, times, f"{name}, {args.model_path or 'the embedded model'}")
    for stage, seconds in vars(times).items():
        print(f"{stage:24s}  {1000 * seconds:12.6f} ms")


if __name__ == "__main__":
    sys.exit(main())
