"""The question-aware budget: what a question attends to is split, whatever its scores.

An image is cut in four ways before the model runs:

1. `first`: unsplit. The question is asked about this view, and its attention is read.
2. `kept`: with the few splits that the blocks' own scores get whatever the question is.
3. `fine`: as finely as alpha asks.
4. `between`: all blocks that are finer than `kept` and coarser than `fine`.

The answer comes from a tree that splits leaves of `kept`, at most down to those of `fine`, where the question attends
to. All of its leaves have been cut already. Pure functions; `qlip.attention` computes the attention.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.cutting import CutOne
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.roots import Roots, roots_for


@dataclass(frozen=True, eq=False)
class QuestionCut:
    """An image that waits for a question."""

    first: CutImage
    """What the question is asked about first: the unsplit image."""

    kept: CutImage
    """What the scores split, whatever the question."""

    between: CutImage
    """The blocks that are smaller than the leaf of `kept` around them and larger than those of `fine` in them."""

    fine: CutImage
    """The image as fine as alpha asks; it splits leaves of `kept` further."""

    native_grid: int
    """n, cells per side of the grid that the tower was trained on."""

    settings: QLIPConfig
    """`score_share`, `question_share` and `max_tokens` bound what is split."""

    def __post_init__(self) -> None:
        grids = [tuple(cut.leaves.grid) for cut in (self.first, self.kept, self.between, self.fine)]
        if len(set(grids)) > 1:
            raise ValueError(f"the grids differ: {', '.join(map(str, grids))} cells")

    @property
    def unasked(self) -> CutImage:
        """The image if no question is asked: the leaves by score, and the thumbnail."""
        return replace(self.kept, thumbnail=self.first.thumbnail)

    @property
    def roots(self) -> Roots:
        """The coarsest blocks, whose attention is read."""
        return roots_for(self.settings, self.first.leaves.grid, self.native_grid)

    @property
    def splits(self) -> int:
        """Number of blocks that a question splits, each into four."""
        kept, share = len(self.kept.leaves), self.settings.question_share
        most = _bound_leaves(self.first.leaves, self.settings.score_share + share, self.settings)
        if share > 0 and (self.settings.max_tokens is None or kept + 3 <= self.settings.max_tokens):
            most = max(most, kept + 3)  # one split at least, if the budget allows
        return max(0, min(most, len(self.fine.leaves)) - kept) // 3

    @property
    def most_leaves(self) -> int:
        """Number of leaves after the question's splits; the same for every question."""
        return len(self.kept.leaves) + 3 * self.splits

    def relevance(self, weights: Tensor) -> Tensor:
        """Sums attention weights over each root.

        Args:
            weights: float (M,), of the tokens of the first cut: the thumbnail's n * n, if it has one, then the leaves'.

        Returns:
            float32 (roots,).
        """
        roots = self.roots
        index = _root_of_leaves(self.first.leaves, roots)
        if self.first.thumbnail is not None:
            index = torch.cat([_root_of_native_cells(roots, self.first.leaves.grid, self.native_grid), index])
        if len(weights) != len(index):
            raise ValueError(f"there are {len(weights)} attention weights for an image of {len(index)} tokens")
        inside = index >= 0
        return _sum_by_root(weights.float().cpu()[inside], index[inside], roots)

    def refine(self, weights: Tensor) -> CutImage:
        """Splits what a question attends to; `weights` as in `relevance`."""
        return self.take(self.choose_leaves(self.relevance(weights)))

    def choose_leaves(self, relevance: Tensor) -> Leaves:
        """Repeatedly splits the most attended block among those that alpha asks to split.

        The attention on a root counts for the blocks in it by their area, so that several roots are seen twice as fine
        before one is seen four times as fine. Ties: larger first, then in raster order.

        Args:
            relevance: float (roots,).
        """
        leaves, roots = self.kept.leaves, self.roots
        index = _root_of_leaves(self.first.leaves, roots)
        inside = index >= 0
        cells = _sum_by_root(self.first.leaves.sizes[inside].float() ** 2, index[inside], roots)
        density = (relevance / cells).tolist()  # by cell
        finest = _map_sizes(self.fine.leaves)

        def heap_entry(box: tuple[int, ...], root: int) -> tuple[float, int, tuple[int, ...], int]:
            return -density[root] * box[2] ** 2, -box[2], box, root

        owners = _root_of_leaves(leaves, roots).tolist()
        boxes = [(row, col, size) for row, col, size in leaves.boxes.tolist()]
        pairs = zip(boxes, owners, strict=True)
        queue = [heap_entry(box, root) for box, root in pairs if finest[box[0], box[1]] < box[2]]
        heapq.heapify(queue)
        chosen = set(boxes)
        for _ in range(self.splits):
            *_, (row, col, size), root = heapq.heappop(queue)
            chosen.remove((row, col, size))
            half = size // 2
            for child in ((row + down, col + across, half) for down in (0, half) for across in (0, half)):
                chosen.add(child)
                if finest[child[0], child[1]] < half:
                    heapq.heappush(queue, heap_entry(child, root))
        return Leaves(torch.tensor(sorted(chosen), dtype=torch.int64, device="cpu"), leaves.grid)

    def take(self, leaves: Leaves) -> CutImage:
        """Collects the patches of leaves, all of which are in `kept`, `between` or `fine`."""
        wanted = _identify(leaves)
        found, patches = wanted[:0], self.kept.patches[:0]
        for cut in (self.kept, self.between, self.fine):
            own = _identify(cut.leaves)
            new = torch.isin(own, wanted) & ~torch.isin(own, found)
            found = torch.cat([found, own[new]])
            patches = torch.cat([patches, cut.patches[new.to(patches.device)]])
        if len(found) != len(leaves):
            raise ValueError(f"{len(leaves) - len(found)} of {len(leaves)} leaves are not cut")
        return CutImage(leaves, patches[found.argsort().to(patches.device)], self.first.thumbnail)


def cut_for_question(cut: CutOne, native_grid: int, settings: QLIPConfig) -> QuestionCut:
    """Cuts an image for a question that is still to come.

    Args:
        cut: cuts the image.
        native_grid: n, cells per side of the grid that the tower was trained on.
        settings: of the image.
    """
    first = cut(replace(settings, alpha=math.inf))
    leaves = replace(settings, thumbnail=False)
    kept = cut(replace(leaves, max_tokens=_bound_leaves(first.leaves, settings.score_share, settings)))
    fine = cut(leaves, bounded=False)
    inner = _find_between(kept.leaves, fine.leaves, roots_for(settings, first.leaves.grid, native_grid))
    between = cut(leaves, inner) if len(inner) else CutImage(inner, kept.patches[:0])
    return QuestionCut(first, kept, between, fine, native_grid, settings)


def _bound_leaves(unsplit: Leaves, share: float, settings: QLIPConfig) -> int:
    """Computes how many leaves there may be if a share of the unsplit image's may be added."""
    added = math.floor(min(math.prod(unsplit.grid), len(unsplit) * share + 1e-9))  # 0.15 times 100 is 15
    most = len(unsplit) + added
    return most if settings.max_tokens is None else min(most, settings.max_tokens)


def _find_between(kept: Leaves, fine: Leaves, roots: Roots) -> Leaves:
    """Finds the blocks inside leaves of `kept` that `fine` splits: those of one size in raster order."""
    coarsest, finest = _map_sizes(kept), _map_sizes(fine)
    boxes = []
    for level in range(1, roots.level):
        side = 2**level
        row = torch.arange(roots.top, roots.top + roots.rows, side, device="cpu")
        col = torch.arange(roots.left, roots.left + roots.cols, side, device="cpu")
        at = torch.cartesian_prod(row, col).view(-1, 2)
        lies_between = (finest[at[:, 0], at[:, 1]] < side) & (coarsest[at[:, 0], at[:, 1]] > side)
        boxes.append(F.pad(at[lies_between], (0, 1), value=side))
    return Leaves(torch.cat([kept.boxes[:0], *boxes]), kept.grid)


def _map_sizes(leaves: Leaves) -> Tensor:
    """Finds the side of the leaf that covers each cell: int64 (rows, cols)."""
    return leaves.sizes[leaves.token_map()]


def _identify(leaves: Leaves) -> Tensor:
    """Numbers blocks by their places and sizes, in raster order: int64 (N,)."""
    row, col, size = leaves.boxes.unbind(1)
    return (row * leaves.grid[1] + col) * (max(leaves.grid) + 1) + size


def _root_of_leaves(leaves: Leaves, roots: Roots) -> Tensor:
    """Finds the root that each leaf is in: int64 (N,), in raster order of the roots; -1 outside of their region."""
    return _root_at(leaves.boxes[:, 0], leaves.boxes[:, 1], roots)


def _root_of_native_cells(roots: Roots, grid: tuple[int, int], native_grid: int) -> Tensor:
    """Finds the root at the centre of each cell of the n x n grid over the image: int64 (n * n,)."""
    centre = (torch.arange(native_grid, dtype=torch.float32, device="cpu") + 0.5) / native_grid
    row, col = torch.meshgrid((centre * grid[0]).long(), (centre * grid[1]).long(), indexing="ij")
    return _root_at(row.flatten(), col.flatten(), roots)


def _root_at(row: Tensor, col: Tensor, roots: Roots) -> Tensor:
    row, col = row - roots.top, col - roots.left
    inside = (row >= 0) & (row < roots.rows) & (col >= 0) & (col < roots.cols)
    index = (row >> roots.level) * _root_shape(roots)[1] + (col >> roots.level)
    return index.masked_fill(~inside, -1)


def _root_shape(roots: Roots) -> tuple[int, int]:
    """Rows and columns of the roots; those at the right and bottom edge may stick out of the region."""
    side = 1 << roots.level
    return -(-roots.rows // side), -(-roots.cols // side)


def _sum_by_root(values: Tensor, index: Tensor, roots: Roots) -> Tensor:
    """Sums values (N,) over roots, each at an index: float32 (roots,)."""
    return torch.zeros(math.prod(_root_shape(roots)), dtype=torch.float32, device="cpu").index_add_(0, index, values)
