"""The leaves of a drawing, as HTML that `leaves.js` reads: where each one is, and its share in the last answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from torch import Tensor

from qlip import Leaves
from qlip.tools.heat import FULL_FRAME

HINT = "Point at a visual token, tap it, or step with the arrow keys, to see its size."


def leaf_map(
    leaves: Leaves | None, size: tuple[int, int], weights: Tensor | None = None, frame: Sequence[float] = FULL_FRAME
) -> str:
    """Formats the line that describes one leaf, with what is known of all.

    Args:
        leaves: N leaves of the drawing; None describes nothing.
        size: (width, height) of the picture in pixels.
        weights: float (N,), their shares in an answer.
        frame: where their grid lies in the drawing, see `qlip.draw_weights`.
    """
    if leaves is None:
        return ""
    rows, cols = leaves.grid
    width, height = (frame[2] - frame[0]) * size[0], (frame[3] - frame[1]) * size[1]
    known = {
        "grid": [rows, cols],
        "frame": list(frame),
        "cell": [round(width / cols, 2), round(height / rows, 2)],
        "leaves": leaves.boxes.tolist(),
        "shares": None if weights is None else [f"{100 * share:.1f}" for share in weights.tolist()],
    }
    text = escape(json.dumps(known, separators=(",", ":")), quote=True)
    return f'<p id="leaf" class="meter-note" role="status" data-leaves="{text}">{HINT}</p>'
