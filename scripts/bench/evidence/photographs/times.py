"""The time of every stage between a photograph and its features, CLIP and QLIP in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava.image_geometry import expand2square
from qlip import QLIPConfig
from qlip.cutting import OPENAI_CLIP_MEAN, ImageCutter
from scripts.bench.evidence.photographs.collection import Photograph
from scripts.markdown_table import table_head, table_row

STAGES = ("prepare", "tower")
"""QLIP's preparation ends with the patches of its leaves."""
LAYERS = 24
CLIP_NAME = "CLIP"


@dataclass(frozen=True)
class Times:
    """What the photographs take together, encoded in one way."""

    name: str
    tokens: float
    """Mean over the photographs."""
    seconds: dict[str, float]
    """By stage: the sum over photographs of the median over turns; CLIP's preparation holds its resizing alone."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def measure_stages(
    photographs: Sequence[Photograph], settings: Mapping[str, QLIPConfig], repeats: int, layer: nn.Module | None = None
) -> list[Times]:
    """Times CLIP and every setting on each photograph in turns, after a turn to warm up.

    Args:
        photographs: the pictures.
        settings: by name.
        repeats: turns that count.
        layer: timed in place of each of the tower's 24; None builds a random one of ViT-L/14.
    """
    layer = build_layer() if layer is None else layer
    ways: dict[str, QLIPConfig | None] = {CLIP_NAME: None, **settings}
    found: dict[str, list[list[dict[str, float]]]] = {name: [[] for _ in photographs] for name in ways}
    tokens: dict[str, list[int]] = {name: [] for name in ways}
    for turn in range(-1, repeats):
        for index, item in enumerate(photographs):
            for name, chosen in ways.items():
                count, laps = run_stages(item.picture, chosen, layer)
                if turn >= 0:
                    found[name][index].append(laps)
                else:
                    tokens[name].append(count)
    rows = []
    for name, pictures in found.items():
        stages = pictures[0][0]
        seconds = {stage: sum(statistics.median(lap[stage] for lap in laps) for laps in pictures) for stage in stages}
        rows.append(Times(name, statistics.mean(tokens[name]), seconds))
    return rows


@torch.inference_mode()
def run_stages(picture: Image.Image, settings: QLIPConfig | None, layer: nn.Module) -> tuple[int, dict[str, float]]:
    """Runs the stages for one picture: its number of tokens, and seconds by stage."""
    cutter, laps = ImageCutter(), {}

    def lap(stage: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        start = time.perf_counter()
        result = work()
        laps[stage] = time.perf_counter() - start
        return result

    if settings is None:
        side = cutter.native_size
        background = tuple(round(255 * value) for value in OPENAI_CLIP_MEAN)
        plain = QLIPConfig(geometry="grid", image_size=side)
        lap("prepare", lambda: cutter.normalise(expand2square(picture, background), plain))
        count = cutter.native_grid**2
    else:
        count = len(lap("prepare", lambda: cutter.prepare(picture, settings).patches))
    hidden = torch.zeros(1, count + 1, layer.self_attn.embed_dim)
    lap("tower", lambda: layer(hidden, attention_mask=None))
    laps["tower"] *= LAYERS
    return count, laps


def build_layer() -> nn.Module:
    """Builds one layer of ViT-L/14 with random weights."""
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    config._attn_implementation = "sdpa"
    return CLIPEncoderLayer(config).eval()


def times_table(rows: Sequence[Times]) -> str:
    """Formats the stages as shares of CLIP's total, the first row's."""
    whole = rows[0].total
    lines = [table_head(["seen by", "tokens", *STAGES, "total"])]
    for row in rows:
        shares = [f"{row.seconds[stage] / whole:.3f}" if stage in row.seconds else "" for stage in STAGES]
        lines.append(table_row([row.name, f"{row.tokens:.0f}", *shares, f"{row.total / whole:.2f}"]))
    return "\n".join(lines)
