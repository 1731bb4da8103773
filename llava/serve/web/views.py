"""Drawings and HTML of the page: the picture as the model sees it, and the cost in tokens and seconds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

import qlip
from llava.model.vision.prepared_image import PreparedImage
from llava.serve.web.backend import FirstPass, Pixels
from llava.serve.web.markdown import render_answer

DRAWING_SIDE = 640
"""Longer side of a drawing in pixels, about twice its size on the page, so that lines stay sharp."""

PICTURE, LINES, TOWER, ANSWER = "Picture", "Lines", "Encoder input", "What it looked at"
VIEWS = (PICTURE, LINES, TOWER)
"""The drawings: the picture, the picture with lines where it is split, each leaf by its patch."""
EXPLAINED_VIEWS = (*VIEWS, ANSWER)
"""The drawings where the model explains answers: also the picture with the heat of what the last answer depended on."""

ALTS = {
    PICTURE: "The picture",
    LINES: "The picture with lines where it is split into visual tokens",
    TOWER: "The picture as the encoder gets it, a patch for each visual token",
    ANSWER: "The picture with the heat of what the last answer depended on",
}
"""What a screen reader says of each drawing."""

OUTDATED = (
    '<p class="meter-note" role="status">Drawn with the settings of the last answer. '
    "New ones count from the next question.</p>"
)
NO_ANSWER = "Ask something first: this shows what the last answer depended on."

NO_COST = "<p></p>"
NO_PICTURE = '<p class="hint">Choose a picture to see it cut.</p>'
OPENING = '<p class="hint opening">Opening the picture…</p>'


@dataclass(frozen=True)
class Cost:
    """Cost of an answer."""

    tokens: int
    """Number of visual tokens."""
    first: float | None = None
    """Seconds to the first text; None before it."""
    total: float | None = None
    """Seconds to the end; None before it."""
    first_pass: FirstPass | None = None
    """Part of the time to the first text; None if there was none or it is not known."""


def render_patches(prepared: PreparedImage, pixels: Pixels) -> Image.Image:
    """Renders the model's input: each leaf as its patch resampled to the leaf's size, so large leaves are blurred."""
    side, leaves = pixels.patch_size, leaves_of(prepared, pixels)
    rows, cols = leaves.grid
    if isinstance(prepared.image, Tensor):
        image = prepared.image
        tile = image[0] if image.ndim == 4 else image  # of several tiles, the first shows the whole picture
        patches = qlip.extract_patches(tile[:, : rows * side, : cols * side], leaves, side)
    else:
        patches = prepared.patches
    levels = ((patches * pixels.std + pixels.mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    canvas = np.empty((rows * side, cols * side, 3), dtype=np.uint8)
    for (row, col, size), patch in zip(leaves.boxes.tolist(), levels, strict=True):
        block = patch.repeat(size, axis=0).repeat(size, axis=1)
        above, before = max(0, -row) * side, max(0, -col) * side  # leaves of tiles may reach into the padding
        space = canvas[max(0, row) * side : (row + size) * side, max(0, col) * side : (col + size) * side]
        space[:] = block[above : above + space.shape[0], before : before + space.shape[1]]
    return Image.fromarray(canvas)


def leaves_of(prepared: PreparedImage, pixels: Pixels) -> qlip.Leaves:
    """Finds the leaves of a prepared image; without a quadtree, the uniform grid."""
    if prepared.leaves is not None:
        return prepared.leaves
    height, width = prepared.size
    return qlip.Leaves.uniform((height // pixels.patch_size, width // pixels.patch_size))


def draw(
    prepared: PreparedImage,
    pixels: Pixels,
    side: int = DRAWING_SIDE,
    picture: Image.Image | None = None,
    view: str = LINES,
) -> Image.Image:
    """Draws one of `VIEWS`, about `side` pixels long.

    Args:
        prepared: The model's input.
        pixels: How its patches become an image.
        side: Longer side in pixels.
        picture: What was prepared, for a sharper drawing; by default it is drawn from the patches. A model without a
            quadtree may pad or crop its picture, so that lines are drawn over its patches in any case.
        view: One of `VIEWS`.
    """
    leaves = leaves_of(prepared, pixels)
    cell, width = max(4, side // max(leaves.grid)), max(1, side // 320)
    if view in (PICTURE, ANSWER) and picture is not None:  # of an answer that is still to come
        return enlarge(picture, side)
    if view == LINES and picture is not None and prepared.leaves is not None and prepared.tiles is None:
        return qlip.draw_leaves(picture, leaves, cell, width=width)
    patches = render_patches(prepared, pixels)
    if view == LINES:
        return qlip.draw_leaves(patches, leaves, cell, width=width)
    rows, cols = leaves.grid
    sampling = Image.Resampling.NEAREST if cell >= pixels.patch_size else Image.Resampling.BOX
    return patches.resize((cols * cell, rows * cell), sampling)


def enlarge(picture: Image.Image, side: int = DRAWING_SIDE) -> Image.Image:
    """Resizes a picture to a longer side of `side` pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)


def token_meter(
    prepared: PreparedImage, picture: Image.Image, native_tokens: int, several: bool = False, alt: str = ""
) -> str:
    """Formats as HTML the number of a picture's visual tokens, compared with the uniform grid and CLIP.

    Args:
        prepared: The picture as the model gets it.
        picture: The picture.
        native_tokens: CLIP's number.
        several: Whether it is one of several.
        alt: What the drawing beside it shows; `leaves.js` makes it the drawing's alternative text.
    """
    is_one_piece = prepared.leaves is not None and prepared.tokens == 1
    part = prepared.tokens / (native_tokens if is_one_piece else prepared.uniform_tokens)
    share = f"{part:.0%}" if part >= 0.005 else "&lt;1%"
    if prepared.leaves is None:
        height, width = prepared.size
        tiles = len(prepared.image) if prepared.image.ndim == 4 else 1
        note = f"CLIP&rsquo;s uniform grid of {width}&times;{height} pixels, from a picture of"
        note += f" {picture.width}&times;{picture.height}"
        note += f", and {tiles - 1} tiles of it" if tiles > 1 else ""
    elif is_one_piece:
        note = f"The whole picture in one piece (CLIP takes {native_tokens:,})"
    else:
        rows, cols = prepared.leaves.grid
        if prepared.tiles is not None:
            note = f"{share} of the {prepared.uniform_tokens:,} of the model&rsquo;s own tiles"
        else:
            note = f"{share} of the uniform grid&rsquo;s {prepared.uniform_tokens:,} ({cols}&times;{rows})"
            note += f"; CLIP takes {native_tokens:,}"
            is_whole = prepared.tokens <= native_tokens and len(prepared.leaves.sizes.unique()) == 1
            note += "; nothing is split" if is_whole else ""
        if prepared.question is not None:
            note += f". Your question is first asked about {prepared.first_tokens:,} tokens; then the picture is split "
            note += f"where it looks, into at most {prepared.tokens:,}"
    count = count_tokens(prepared.tokens) + " of this picture" * several
    grid = "CLIP&rsquo;s tokens" if is_one_piece else "the uniform grid"
    return (
        f'<div class="meter" data-alt="{escape(alt)}"><p class="meter-count">{count}</p>'
        f'<div class="meter-bar" role="img" aria-label="{share} of {grid}">'
        f'<i style="width:{min(1.0, part):.1%}"></i></div><p class="meter-note">{note}</p></div>'
    )


def count_tokens(tokens: int) -> str:
    """Formats a number of visual tokens as HTML."""
    return f"<strong>{tokens:,}</strong> visual token{'s' * (tokens != 1)}"


def cost_line(cost: Cost) -> str:
    """Formats the cost of the last answer as HTML."""
    parts = [count_tokens(cost.tokens), *(f"<strong>{value}</strong> {name}" for name, value in seconds(cost))]
    return f'<p class="cost">{" &middot; ".join(parts)}</p>'


def seconds(cost: Cost) -> list[tuple[str, str]]:
    """Lists the names and values of the known times."""
    known = [("to first token", cost.first), ("in total", cost.total)]
    if cost.first_pass is not None:
        known.insert(0, (f"for a first pass of {cost.first_pass.tokens:,}", cost.first_pass.seconds))
    return [(name, f"{value:.2f} s") for name, value in known if value is not None]


def compare_question(question: str) -> str:
    """Formats the question of a comparison as HTML."""
    return f'<h2 tabindex="0">{escape(question)}</h2>'  # long ones scroll, also by the keyboard


def compare_head(title: str, prepared: PreparedImage, pixels: Pixels) -> str:
    """Formats a small drawing of one side's input as HTML."""
    source = data_url(draw(prepared, pixels, 352, view=TOWER))
    return f'<img class="side-view" src="{source}" alt="Encoder input with {escape(title)}">'


def data_url(image: Image.Image) -> str:
    """Encodes an image as a JPEG in a URL."""
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_strip(pictures: Sequence[Image.Image], asked: int, explains: bool = False) -> str:
    """Formats the pictures of a conversation as HTML; nothing unless there are several.

    Args:
        pictures: In the order in which they were added.
        asked: How many of them the model has been asked about; the others go with the next question.
        explains: Whether an answer can be explained, which is drawn on the last picture that it is about.
    """
    if len(pictures) < 2:
        return ""
    items = []
    for number, picture in enumerate(pictures, start=1):
        small = picture.copy()
        small.thumbnail((96, 96))
        when, button = "in the conversation", ""
        if number > asked:
            when = "goes with the next question"
            button = f'<button type="button" data-picture="{number}" data-pictures="{len(pictures)}" '
            button += f'aria-label="Remove picture {number}" title="Remove">&times;</button>'
        image = f'<img src="{data_url(small)}" alt="Picture {number}, {when}">'
        items.append(f"<li>{image}<span>{number}</span>{button}</li>")
    note = f"{len(pictures)} pictures. The drawing shows the newest"
    note += f" (“{ANSWER}”: the newest asked about)" if explains and asked < len(pictures) else ""
    note += ". Clear removes all but the first."
    return f'<ol class="strip">{"".join(items)}</ol><p class="hint">{note}</p>'


def compare_body(title: str, subtitle: str, answer: str | None, cost: Cost, mark: str = "") -> str:
    """Formats one side's answer and its cost as HTML.

    Args:
        title: The side's title.
        subtitle: The side's subtitle.
        answer: The text so far; None before generation starts.
        cost: The cost so far.
        mark: Why no more will come; empty while something may, and of a whole answer.
    """
    hint = '<span class="hint">waiting</span>' if answer is None else "&hellip;"
    text = render_answer(answer or "", mark) or hint
    figures = "".join(
        f"<div><dd>{value}</dd><dt>{name}</dt></div>"
        for name, value in [("visual tokens", f"{cost.tokens:,}"), *seconds(cost)]
    )
    head = f"<h3>{escape(title)} <small>{escape(subtitle)}</small></h3>"
    return f'{head}<div class="side-answer" tabindex="0">{text}</div><dl class="figures">{figures}</dl>'
