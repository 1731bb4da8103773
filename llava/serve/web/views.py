"""What the visitor is shown: the picture as the model sees it, and what seeing it costs. Pillow and HTML, no events."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

import qlip
from llava.model.prepared_image import PreparedImage
from llava.serve.web.backend import Pixels

DRAWING_SIDE = 640
"""Longer side of a drawing in pixels, about twice what the page shows, so that lines stay sharp."""

NOTHING_SPENT = "<p></p>"
NOTHING_SEEN = '<p class="hint">Choose a picture to see it cut.</p>'


@dataclass(frozen=True)
class Cost:
    """What an answer costs."""

    tokens: int
    """Visual tokens."""
    first: float | None = None
    """Seconds until its first text; None while there is none."""
    total: float | None = None
    """Seconds until its last; None while it goes on."""


def as_seen(view: PreparedImage, pixels: Pixels) -> Image.Image:
    """Returns what reaches the model: each leaf's pixels as its patch holds them, so that large leaves are blurred."""
    side, leaves = pixels.patch_size, leaves_of(view, pixels)
    rows, cols = leaves.grid
    if view.leaves is None:
        tile = view.image[0] if view.image.ndim == 4 else view.image  # tiles: the first shows the whole picture
        patches = qlip.extract_patches(tile[:, : rows * side, : cols * side], leaves, side)
    else:
        patches = view.image.patches
    levels = ((patches * pixels.std + pixels.mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    canvas = np.empty((rows * side, cols * side, 3), dtype=np.uint8)
    for (row, col, size), patch in zip(leaves.boxes.tolist(), levels, strict=True):
        block = patch.repeat(size, axis=0).repeat(size, axis=1)
        canvas[row * side : (row + size) * side, col * side : (col + size) * side] = block
    return Image.fromarray(canvas)


def leaves_of(view: PreparedImage, pixels: Pixels) -> qlip.Leaves:
    """Returns the view's leaves; without a quadtree, the uniform grid."""
    if view.leaves is not None:
        return view.leaves
    height, width = view.size
    return qlip.Leaves.uniform((height // pixels.patch_size, width // pixels.patch_size))


def draw(view: PreparedImage, pixels: Pixels, side: int = DRAWING_SIDE) -> Image.Image:
    """Draws what reaches the model, with the borders of all leaves, about `side` pixels long."""
    leaves = leaves_of(view, pixels)
    return qlip.draw_leaves(as_seen(view, pixels), leaves, cell=max(8, side // max(leaves.grid)))


def meter(view: PreparedImage, picture: Image.Image, native_tokens: int) -> str:
    """Returns HTML that says how many visual tokens a view costs, beside the uniform grid and CLIP."""
    share = view.tokens / view.uniform_tokens
    if view.leaves is None:
        height, width = view.size
        note = f"CLIP&rsquo;s uniform grid, on the picture scaled from {picture.width}&times;{picture.height}"
        note += f" to {width}&times;{height} pixels"
    else:
        rows, cols = view.leaves.grid
        note = f"{share:.0%} of the uniform grid&rsquo;s {view.uniform_tokens:,} ({cols}&times;{rows})"
        note += f"; CLIP takes {native_tokens:,}"
    return (
        f'<div class="meter"><p class="meter-count">{counted(view.tokens)}</p>'
        f'<div class="meter-bar" role="img" aria-label="{share:.0%} of the uniform grid">'
        f'<i style="width:{min(1.0, share):.1%}"></i></div><p class="meter-note">{note}</p></div>'
    )


def counted(tokens: int) -> str:
    """Returns HTML with a number of visual tokens."""
    return f"<strong>{tokens:,}</strong> visual token{'s' * (tokens != 1)}"


def cost_line(cost: Cost) -> str:
    """Returns HTML that says what the last answer cost."""
    parts = [counted(cost.tokens), *(f"<strong>{value}</strong> {name}" for name, value in seconds(cost))]
    return f'<p class="cost">{" &middot; ".join(parts)}</p>'


def seconds(cost: Cost) -> list[tuple[str, str]]:
    """Returns names and values of the times that are known."""
    known = (("to first token", cost.first), ("in total", cost.total))
    return [(name, f"{value:.2f} s") for name, value in known if value is not None]


def compare_question(question: str) -> str:
    """Returns HTML with what both sides were asked."""
    return f"<h2>{escape(question)}</h2>"


def compare_head(title: str, view: PreparedImage, pixels: Pixels) -> str:
    """Returns HTML with one side's name and a small drawing of its view."""
    buffer = BytesIO()
    draw(view, pixels, 352).save(buffer, format="JPEG", quality=88)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="side-view" src="{source}" alt="What the model sees with {escape(title)}">'


def compare_body(title: str, subtitle: str, answer: str | None, cost: Cost) -> str:
    """Returns HTML with one side's answer and its cost.

    Args:
        title: Of the side.
        subtitle: What it is.
        answer: The text so far; None before it is asked for.
        cost: As far as it is known.
    """
    text = '<span class="hint">waiting</span>' if answer is None else escape(answer) or "&hellip;"
    figures = "".join(
        f"<div><dd>{value}</dd><dt>{name}</dt></div>"
        for name, value in [("visual tokens", f"{cost.tokens:,}"), *seconds(cost)]
    )
    head = f"<h3>{escape(title)} <small>{escape(subtitle)}</small></h3>"
    return f'{head}<p class="side-answer">{text}</p><dl class="figures">{figures}</dl>'
