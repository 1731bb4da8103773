"""A small chart of the embedded model's accuracy against visual tokens, with the current number of tokens marked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby

from llava.serve.engine.params import QLIPOptions

WIDTH, HEIGHT = 340, 128
"""Size of the drawing, in its own units."""
LEFT, RIGHT, TOP, BOTTOM = 30, 8, 10, 18
"""Space around the axes."""
TICKS = (16, 64, 256, 1024)


@dataclass(frozen=True)
class Curve:
    """Measured accuracy of one model by visual tokens."""

    source: str
    """Where the numbers come from."""
    note: str
    """What was measured."""
    clip: tuple[float, float]
    """Tokens and accuracy in % on CLIP's grid."""
    qlip: tuple[tuple[float, float], ...]
    """Tokens and accuracy in % of quadtrees with growing budgets."""
    alpha: float | None = None
    """Split threshold of these quadtrees; None if it does not matter."""

    def covers(self, tokens: int, options: QLIPOptions) -> bool:
        """Tells whether a picture of this number of tokens, cut with these options, is within what was measured."""
        measured = [x for x, _ in (self.clip, *self.qlip)]
        if options.enabled is not False and (
            options.budget == "question" or (self.alpha is not None and options.alpha not in (None, self.alpha))
        ):
            return False
        return min(measured) <= tokens <= max(measured)


def embedded_curve() -> Curve:
    """Reads the curve that is shown with the embedded model; it is kept beside this module."""
    record = json.loads(files("llava.serve.web").joinpath("accuracy.json").read_text(encoding="utf-8"))
    clip, qlip = record["clip"], record["qlip"]
    points, alpha = tuple((x, y) for x, y in qlip), record["settings"]["alpha"]
    return Curve(record["source"], record["note"], (clip[0], clip[1]), points, alpha)


def accuracy_chart(curve: Curve | None, tokens: int | None, when: str = "now") -> str:
    """Draws a curve as an inline SVG with a mark at a number of tokens, if any; nothing without a curve.

    The curve is broken where a budget gives CLIP's own view: that point is CLIP's.
    """
    if curve is None:
        return ""
    clip_x, clip_y = curve.clip
    parts = [list(part) for is_clip, part in groupby(curve.qlip, lambda point: point == curve.clip) if not is_clip]
    lines = "".join(f'<polyline points="{" ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in part)}"/>' for part in parts)
    dots = "".join(f'<circle cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="2.6"/>' for part in parts for x, y in part)
    last_x, last_y = curve.qlip[-1]
    best = max(curve.qlip, key=lambda point: point[1])
    text = f"Accuracy by visual tokens, {curve.note}: QLIP {best[1]:g} % at {best[0]:,} tokens, "
    text += f"CLIP {clip_y:g} % at {clip_x:,}"
    text += "" if tokens is None else f"; this picture has {tokens:,}"
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">'
        f"{_axes()}{'' if tokens is None else _mark(tokens, when)}"
        f'<g class="qlip">{lines}{dots}</g>'
        f'<g class="clip"><rect x="{_x(clip_x) - 3.5:.1f}" y="{_y(clip_y) - 3.5:.1f}" width="7" height="7"/>'
        f'<text x="{_x(clip_x) - 7:.1f}" y="{_y(clip_y) + 4:.1f}" text-anchor="end">CLIP</text></g>'
        f'<text class="qlip" x="{_x(last_x) + 6:.1f}" y="{_y(last_y) + 4:.1f}">QLIP</text></svg>'
        f"<figcaption>Accuracy in % by visual tokens: {escape(curve.note)}</figcaption></figure>"
    )


def _mark(tokens: int, when: str) -> str:
    here = _x(tokens)
    anchor, shift = ("end", -4) if here > WIDTH * 0.7 else ("start", 4)
    return (
        f'<line class="now" x1="{here:.1f}" x2="{here:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="now" x="{here + shift:.1f}" y="{HEIGHT - BOTTOM - 6}" text-anchor="{anchor}">'
        f"{tokens:,} token{'s' * (tokens != 1)} {when}</text>"
    )


def _axes() -> str:
    lines = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value):.1f}" y2="{_y(value):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{_y(value) + 3.5:.1f}" text-anchor="end">{value}</text>'
        for value in (0, 50, 100)
    )
    marks = "".join(f'<text x="{_x(x):.1f}" y="{HEIGHT - 4}" text-anchor="middle">{x:,}</text>' for x in TICKS)
    return f'<g class="axes">{lines}{marks}</g>'


def _x(tokens: float) -> float:
    """Maps tokens, on a logarithmic axis, to the drawing; numbers beyond its ends are at them."""
    low, high = math.log2(TICKS[0]), math.log2(TICKS[-1])
    share = (math.log2(max(1, tokens)) - low) / (high - low)
    return LEFT + 10 + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT - 24)


def _y(percent: float) -> float:
    return TOP + (1 - percent / 100) * (HEIGHT - TOP - BOTTOM)
