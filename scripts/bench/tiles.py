"""What LLaVA-1.6 takes by tiles, and by QLIP in their place.

`python -m scripts.bench.tiles` writes docs/results/tiles.md: tokens by size of picture and by photograph; operations
of LLaVA-1.6-7B, counted; and the time of each stage as shares of anyres', in interleaved turns. Needs no weights: trees
depend on pixels alone, and the tower and the language model are one random layer each of ViT-L/14's and Llama-7B's
shape, in float32, times their numbers of layers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from qlip import QLIPConfig

if TYPE_CHECKING:
    from PIL import Image

    from llava.model.vision.prepared_image import PreparedImage
    from scripts.bench.flops import ModelCost

SIDE, CELLS = 336, 576
ANYRES = SimpleNamespace(
    image_aspect_ratio="anyres",
    mm_patch_merge_type="spatial_unpad",
    image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
)
"""How LLaVA-1.6's checkpoints cut and join tiles."""
WAYS: dict[str, QLIPConfig | None] = {
    "anyres": None,
    "image": QLIPConfig(),
    "image, budget 576": QLIPConfig(max_tokens=576),
    "image and base, budget 576": QLIPConfig(max_tokens=576, thumbnail=True),
    "tiles": QLIPConfig(tiling="tiles"),
    "tiles, budget 576": QLIPConfig(tiling="tiles", max_tokens=576),
}
"""LLaVA-1.6's own tokens, and QLIP's settings: `tiling`, and where no budget is named the default of 1152."""
SIZES = ((640, 480), (1024, 768), (1920, 1080), (500, 1500))
"""(width, height) that photographs are cropped and resized to."""
TEXT = 64
"""Tokens of the prompt beside the picture's."""
LAYERS = {"tower": 23, "prefill": 32}
STAGES = ("prepare", "tower", "prefill")
REPEATS = 3

INTRODUCTION = """\
# LLaVA-1.6: tiles, and QLIP in their place

`python -m scripts.bench.tiles` writes this page. LLaVA-1.6's five resolutions, CLIP ViT-L/14-336. *anyres* are its own
base and tiles (`spatial_unpad`); *image* is one quadtree over the picture at its own resolution, *tiles* the base and a
quadtree in each tile. Newlines and base count. The settings are QLIPConfig's defaults but for what is named. Rows of a
size are means over {photographs} photographs, cropped and resized to it."""
OPERATIONS = """\
## Operations

Of LLaVA-1.6-7B up to the first token: tower, projector and prefill with {text} tokens of text, by the formulas of
`scripts/bench/flops.py`, as shares of anyres'. Computed, not measured."""
TIMES = """\
## Time

Medians of {turns} interleaved turns over {name} at the four sizes, threads: {threads}, as shares of anyres' three
stages together. One random layer each of ViT-L/14 and of Llama-7B, float32, times 23 and 32."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="tiles", description="Count and time LLaVA-1.6's tiles, and QLIP in their place.")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder to write to (%(default)s)")
    parser.add_argument("--repeats", type=integer(), default=REPEATS, help="interleaved turns of timing (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=os.cpu_count())
    parser.add_argument("--no-times", action="store_true", help="count tokens and operations alone")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Counts, times, and writes the page."""
    import torch
    from PIL import ImageOps

    from scripts.bench.evidence.photographs.collection import load_photographs

    torch.set_num_threads(options.threads)
    photographs = [item for item in load_photographs() if not item.cropped]
    own = {f"{item.name}, {_size(item.picture)}": [item.picture] for item in photographs}
    fitted = {f"{w} x {h}": [ImageOps.fit(item.picture, (w, h)) for item in photographs] for w, h in SIZES}
    counts = {name: count_ways(pictures) for name, pictures in {**fitted, **own}.items()}
    parts = [
        INTRODUCTION.format(photographs=len(photographs)),
        f"## Tokens\n\n{tokens_table(counts)}",
        OPERATIONS.format(text=TEXT),
        operations_table({name: counts[name] for name in fitted}),
    ]
    if not options.no_times:
        named = {name: pictures[0] for name, pictures in fitted.items()}
        measured = times_table(measure_stages(list(named.values()), options.repeats))
        parts += [TIMES.format(turns=options.repeats, name=photographs[0].name, threads=options.threads), measured]
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "tiles.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(page)


def prepare(picture: Image.Image, settings: QLIPConfig | None) -> PreparedImage:
    """Prepares a picture as LLaVA-1.6 would, or by a quadtree."""
    from transformers import CLIPImageProcessorPil

    from llava.model.vision.prepared_image import prepare_leaves, prepare_pixels
    from qlip.cutting import ImageCutter

    if settings is None:
        square = {"height": SIDE, "width": SIDE}
        processor: Any = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
        return prepare_pixels(picture, processor, ANYRES, CELLS)
    return prepare_leaves(picture, ImageCutter(), settings, ANYRES, SIDE)


def patches_of(image: PreparedImage) -> list[int]:
    """Counts the patches of each sequence that the tower runs over."""
    from torch import Tensor

    if isinstance(image.image, Tensor):
        return [CELLS] * len(image.image)
    if isinstance(image.image, tuple):
        return [len(cut.leaves) for cut in image.image]
    return [len(image.image.leaves)] + [CELLS] * (image.image.thumbnail is not None)


def count_ways(pictures: Sequence[Image.Image]) -> dict[str, tuple[float, float]]:
    """Counts mean tokens, and mean operations in 7B's shape, of pictures in each way."""
    cost, found = llava_7b(), {}
    for name, settings in WAYS.items():
        ready = [prepare(picture, settings) for picture in pictures]
        work = [
            sum(cost.tower.run(patches, settings is not None) for patches in patches_of(image))
            + cost.project(sum(patches_of(image)))
            + cost.prefill(image.tokens + TEXT)
            for image in ready
        ]
        found[name] = statistics.mean(image.tokens for image in ready), statistics.mean(work)
    return found


def llava_7b() -> ModelCost:
    """Builds the sizes of LLaVA-1.6-7B."""
    from scripts.bench.flops import LayerCost, ModelCost, TowerCost

    vision, text, hidden = 1024, 4096, 11008
    tower = TowerCost(
        LayerCost(4 * vision**2, 8 * vision**2, vision), LAYERS["tower"], 3 * 14**2 * vision, CELLS * vision, 1
    )
    layer = LayerCost(4 * text**2, 3 * text * hidden, text)
    return ModelCost(tower, vision * text + text**2, layer, LAYERS["prefill"], 32_000 * text, text**2)


def tokens_table(counts: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Formats the tokens by picture and way."""
    lines = [f"| picture | {' | '.join(WAYS)} |", "|---" * (1 + len(WAYS)) + "|"]
    for name, row in counts.items():
        lines.append(f"| {name} | {' | '.join(f'{tokens:.0f}' for tokens, _ in row.values())} |")
    return "\n".join(lines)


def operations_table(counts: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Formats the operations by size and way, as shares of the first way's."""
    lines = [f"| picture | {' | '.join(WAYS)} |", "|---" * (1 + len(WAYS)) + "|"]
    for name, row in counts.items():
        whole = row["anyres"][1]
        cells = [f"{whole / 1e12:.1f} TFLOP", *(f"{row[way][1] / whole:.2f}" for way in list(WAYS)[1:])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_stages(pictures: Sequence[Image.Image], repeats: int) -> dict[str, dict[str, float]]:
    """Times each way on each picture in turns, after one to warm up: seconds by stage, summed over the pictures."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    from scripts.bench.evidence.photographs.times import build_layer

    config = LlamaConfig(num_hidden_layers=1)  # 7B's shape
    config._attn_implementation = "sdpa"
    text, rotary, vision = LlamaDecoderLayer(config, 0).eval(), LlamaRotaryEmbedding(config), build_layer()

    def tower(image: PreparedImage) -> None:
        lengths = patches_of(image)  # of one batch, as the encoder pads it
        vision(torch.zeros(len(lengths), max(lengths) + 1, 1024), attention_mask=None)

    def prefill(image: PreparedImage) -> None:
        hidden = torch.zeros(1, image.tokens + TEXT, config.hidden_size)
        places = torch.arange(hidden.shape[1])[None]
        text(hidden, attention_mask=None, position_ids=places, position_embeddings=rotary(hidden, places))

    laps: dict[str, list[list[dict[str, float]]]] = {way: [[] for _ in pictures] for way in WAYS}
    with torch.inference_mode():
        for turn in range(-1, repeats):
            for index, picture in enumerate(pictures):
                for way, settings in WAYS.items():
                    start = time.perf_counter()
                    ready = prepare(picture, settings)
                    lap = {"prepare": time.perf_counter() - start}
                    works: dict[str, Callable[[PreparedImage], None]] = {"tower": tower, "prefill": prefill}
                    for stage, work in works.items():
                        start = time.perf_counter()
                        work(ready)
                        lap[stage] = LAYERS[stage] * (time.perf_counter() - start)
                    if turn >= 0:
                        laps[way][index].append(lap)
    return {
        way: {stage: sum(statistics.median(lap[stage] for lap in turns) for turns in of_way) for stage in STAGES}
        for way, of_way in laps.items()
    }


def times_table(seconds: dict[str, dict[str, float]]) -> str:
    """Formats the stages as shares of anyres' total."""
    whole = sum(seconds["anyres"].values())
    lines = [f"| seen by | {' | '.join(STAGES)} | total |", "|---" * (2 + len(STAGES)) + "|"]
    for way, stages in seconds.items():
        shares = [f"{stages[stage] / whole:.3f}" for stage in STAGES]
        lines.append(f"| {way} | {' | '.join(shares)} | {sum(stages.values()) / whole:.2f} |")
    return "\n".join(lines)


def _size(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"


if __name__ == "__main__":
    sys.exit(main())
