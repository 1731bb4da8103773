"""Measures what decoding images in other processes costs: `python -m scripts.bench.decoding`.

Prepares images as a server does (open, resize, cut by the quadtree) with and without `DecoderPool`, in turns, on JPEG
and PNG files about as large as photographs. Prints medians and their ratio.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, run_command
from scripts.bench.machine import machine_line

if TYPE_CHECKING:
    from PIL import Image

    from llava.serve.decoding.pool import DecoderPool
    from qlip import QLIPImageProcessor

SIZES = ((336, 336), (640, 480), (1024, 768), (2000, 1500), (4000, 3000))


def smooth_noise(size: tuple[int, int]) -> Image.Image:
    """Draws an image whose files are about as large as a photograph's."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str) -> bytes:
    """Encodes an image as a file of the given kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def seconds(work: Callable[[], object]) -> float:
    """Times a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(data: bytes, pool: DecoderPool, processor: QLIPImageProcessor, rounds: int) -> tuple[float, float]:
    """Measures the median seconds to prepare an image, decoded in this process and by the pool."""

    from llava.images import decode_image

    def prepare(decode: Callable[[bytes], Image.Image]) -> None:
        processor.cut_originals([decode(data)])

    times = [
        (seconds(lambda: prepare(decode_image)), seconds(lambda: prepare(partial(pool.decode, fit=processor.fit))))
        for _ in range(rounds)
    ]
    own, pooled = (statistics.median(column) for column in zip(*times, strict=True))
    return own, pooled


def run(rounds: int) -> None:
    """Prints the table."""
    from llava.serve.decoding.pool import DecoderPool
    from qlip import QLIPConfig, QLIPImageProcessor

    pool, processor = (
        DecoderPool(1),
        QLIPImageProcessor(qlip=QLIPConfig()),
    )
    print("| file | this process | pool | ratio |\n|---|---|---|---|")
    try:
        for size in SIZES:
            for kind in ("JPEG", "PNG"):
                data = saved(smooth_noise(size), kind)
                compare(data, pool, processor, 1)
                own, pooled = compare(data, pool, processor, rounds)
                name = f"{kind} {size[0]} x {size[1]}, {len(data) / 1000:.0f} kB"
                print(f"| {name} | {1000 * own:.1f} ms | {1000 * pooled:.1f} ms | {pooled / own:.2f} |", flush=True)
    finally:
        pool.close()
    print(f"\n{machine_line()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="decoding", description="Measure what decoding in other processes costs.")
    parser.add_argument("--rounds", type=integer(), default=20, help="times that each image is prepared (%(default)s)")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args.rounds))


if __name__ == "__main__":
    sys.exit(main())
