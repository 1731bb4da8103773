"""Times a LLaVA of 7B's shape from an image to its first token: CLIP, QLIP at three budgets, LLaVA-1.6's tiles.

All ways see the same picture in a turn. Stages as in `scripts.bench.cost_stages`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from scripts.bench.cost_stages import STAGES, CostVariant, Milliseconds, run_once
from scripts.bench.gpu.models import build_subject, picture
from scripts.bench.gpu.parts import Row, report_each
from scripts.bench.gpu.timing import median_ratio

SIZE = 896
"""Side of the pictures in pixels."""
NEW_TOKENS = 8
"""Tokens that decoding is timed over, after the first."""
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""LLaVA-1.6's resolutions; a square picture of this size takes the base and four tiles, 2880 tokens."""

CLIP = "CLIP"
ANYRES = "LLaVA-1.6's tiles"
WAYS = (
    CostVariant(CLIP, None),
    *(CostVariant(f"QLIP {budget}", {"alpha": 0.0, "max_tokens": budget}) for budget in (288, 576, 1152)),
    CostVariant(ANYRES, None),
)

Samples = list[tuple[int, Milliseconds]]


@contextmanager
def tiling(config: Any, way: CostVariant) -> Iterator[None]:
    """Enters a context in which images are cut as the way says: into LLaVA-1.6's tiles, or not."""
    before = config.image_aspect_ratio, config.image_grid_pinpoints
    if way.name == ANYRES:
        config.image_aspect_ratio, config.image_grid_pinpoints = "anyres", PINPOINTS
    try:
        yield
    finally:
        config.image_aspect_ratio, config.image_grid_pinpoints = before


def row(name: str, found: Mapping[str, Samples], failed: Mapping[str, Exception]) -> Row:
    """Computes the medians of one way, and its times to the first token as ratios to CLIP's in the same turns.

    Raises:
        Exception: the error of a way that failed, or CLIP's.
    """
    for peer in (name, CLIP):
        if peer in failed:
            raise failed[peer]
    samples, clip = found[name], found[CLIP]
    totals = [times["total"] for _, times in samples]
    return {
        "tokens": statistics.median(tokens for tokens, _ in samples),
        "turns": len(samples),
        "ms": {
            stage: statistics.median(times[stage] for _, times in samples) for stage in STAGES if stage in samples[0][1]
        },
        "ratio": median_ratio(totals, [times["total"] for _, times in clip]),
    }


def run(model: str, device: str, turns: int) -> int:
    """Measures all ways in turns, after one to warm up, and reports a row for each; returns the number that failed.

    The rows are reported half way, too, in case there is no time for the rest.
    """
    subject = build_subject(model, device)
    found: dict[str, Samples] = {}
    failed: dict[str, Exception] = {}

    def report() -> int:
        return report_each([(way.name, partial(row, way.name, found, failed)) for way in WAYS])

    for turn in range(-1, turns):
        image = picture(SIZE, max(turn, 0))
        for way in WAYS:
            if way.name in failed:
                continue
            try:
                with tiling(subject.model.config, way):
                    sample = run_once(subject, way, image, NEW_TOKENS)
            except Exception as error:  # the other ways are measured
                failed[way.name] = error
                continue
            if turn >= 0:
                found.setdefault(way.name, []).append(sample)
        if 2 * (turn + 1) == turns:
            report()
    return report()
