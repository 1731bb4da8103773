"""The question-aware budget: the cells that a question attends to are split, whatever their scores.

An image is cut three times ahead of the model: unsplit, which the question is asked about first; with the few splits
that the blocks' own scores always get; and as finely as alpha asks. The answer comes from the fine leaves where the
question attends to, and from those of the second tree elsewhere. Pure functions; the attention itself is computed by
`qlip.attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.roots import Roots, roots_for

CELLS_OF_EACH = 32
"""A question splits one in this many of the unsplit image's cells, unless the settings name a number."""


@dataclass(frozen=True, eq=False)
class QuestionCut:
    """An image that waits for a question."""

    first: CutImage
    """What the question is asked about first: the unsplit image."""

    kept: CutImage
    """The cut used where the question does not attend."""

    fine: CutImage
    """All cells as fine as alpha asks."""

    native_grid: int
    """n, cells per side of the grid that the tower was trained on."""

    settings: QLIPConfig
    """`question_cells` and `max_tokens` bound what is split; `score_share` what the scores get before."""

    def __post_init__(self) -> None:
        grids = [tuple(cut.leaves.grid) for cut in (self.first, self.kept, self.fine)]
        if len(set(grids)) > 1:
            raise ValueError(f"the grids differ: {', '.join(map(str, grids))} cells")

    @property
    def roots(self) -> Roots:
        """The blocks that a question splits or leaves whole."""
        return roots_for(self.settings, self.first.leaves.grid, self.native_grid)

    @property
    def gains(self) -> Tensor:
        """int64 (roots,): how many more leaves each root has in the fine tree than in the kept one."""
        roots = self.roots
        return _count_by_root(self.fine.leaves, roots) - _count_by_root(self.kept.leaves, roots)

    @property
    def most_leaves(self) -> int:
        """Bound on the leaves of the image, whatever the question."""
        gains = self.gains.clamp(min=0)
        gains = gains.masked_fill(gains > self._spare, 0)  # never affordable
        extra = int(gains.topk(min(self.cells, len(gains))).values.sum())
        return len(self.kept.leaves) + min(extra, self._spare)

    @property
    def cells(self) -> int:
        """How many roots a question splits at most."""
        return self.settings.question_cells or max(1, len(self.first.leaves) // CELLS_OF_EACH)

    @property
    def _spare(self) -> int:
        """Leaves that the budget allows beyond those of the kept tree."""
        most = self.settings.max_tokens
        return 2**62 if most is None else max(0, most - len(self.kept.leaves))

    def relevance(self, weights: Tensor) -> Tensor:
        """Sums attention weights over each root.

        Args:
            weights: float (M,), of the tokens of the first cut: the thumbnail's n * n, if it has one, then the leaves'.

        Returns:
            float32 (roots,).
        """
        roots = self.roots
        index = root_of_leaves(self.first.leaves, roots)
        if self.first.thumbnail is not None:
            index = torch.cat([_root_of_native_cells(roots, self.first.leaves.grid, self.native_grid), index])
        if len(weights) != len(index):
            raise ValueError(f"there are {len(weights)} attention weights for an image of {len(index)} tokens")
        inside = index >= 0
        sums = torch.zeros(math.prod(_root_shape(roots)), dtype=torch.float32)
        return sums.index_add_(0, index[inside], weights.float().cpu()[inside])

    def choose_roots(self, relevance: Tensor) -> Tensor:
        """Chooses the roots that are split: the most relevant ones of those that have more leaves in the fine tree.

        At most `cells`; one whose leaves exceed what is left of `max_tokens` is passed over, and the next is
        tried. Ties follow raster order.

        Args:
            relevance: float (roots,).

        Returns:
            bool (roots,).
        """
        gains, left = self.gains.tolist(), self._spare
        chosen = torch.zeros(len(gains), dtype=torch.bool)
        wanted = self.cells
        for root in relevance.sort(descending=True, stable=True).indices.tolist():
            if wanted and 0 < gains[root] <= left:
                chosen[root] = True
                wanted, left = wanted - 1, left - gains[root]
        return chosen

    def refine(self, weights: Tensor) -> CutImage:
        """Splits what a question attends to; `weights` as in `relevance`."""
        return self.split(self.choose_roots(self.relevance(weights)))

    def split(self, chosen: Tensor) -> CutImage:
        """Cuts the chosen roots, bool (roots,), as finely as alpha asks, and the others as in the kept tree."""
        roots = self.roots
        own = chosen.nonzero()[:, 0]
        coarse = ~torch.isin(root_of_leaves(self.kept.leaves, roots), own)
        fine = torch.isin(root_of_leaves(self.fine.leaves, roots), own)
        boxes = torch.cat([self.kept.leaves.boxes[coarse], self.fine.leaves.boxes[fine]])
        patches = torch.cat([self.kept.patches[coarse], self.fine.patches[fine]])
        order = (boxes[:, 0] * self.kept.leaves.grid[1] + boxes[:, 1]).argsort()
        leaves = Leaves(boxes[order], self.kept.leaves.grid)
        return CutImage(leaves, patches[order.to(patches.device)], self.first.thumbnail)


def cut_for_question(cut: Callable[[QLIPConfig], CutImage], native_grid: int, settings: QLIPConfig) -> QuestionCut:
    """Cuts an image for a question that is still to come.

    Args:
        cut: cuts the image under the settings that it is given.
        native_grid: n, cells per side of the grid that the tower was trained on.
        settings: of the image.
    """
    first = cut(replace(settings, alpha=math.inf))
    leaves = replace(settings, thumbnail=False)
    most = math.prod(first.leaves.grid)  # leaves of the uniform grid
    budget = math.floor(min(most, len(first.leaves) * (1 + settings.score_share)))
    if settings.max_tokens is not None:
        budget = min(budget, settings.max_tokens)
    kept = cut(replace(leaves, max_tokens=budget))
    fine = cut(replace(leaves, max_tokens=None))
    if fine.leaves.grid != first.leaves.grid:  # made smaller, since even its coarsest tree would exceed the budget
        fine = cut(leaves)
    return QuestionCut(first, kept, fine, native_grid, settings)


def root_of_leaves(leaves: Leaves, roots: Roots) -> Tensor:
    """Finds the root that each leaf is in: int64 (N,), in raster order of the roots; -1 outside of their region."""
    return _root_at(leaves.boxes[:, 0], leaves.boxes[:, 1], roots)


def _root_of_native_cells(roots: Roots, grid: tuple[int, int], native_grid: int) -> Tensor:
    """Finds the root at the centre of each cell of the n x n grid over the image: int64 (n * n,)."""
    centre = (torch.arange(native_grid) + 0.5) / native_grid
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


def _count_by_root(leaves: Leaves, roots: Roots) -> Tensor:
    index = root_of_leaves(leaves, roots)
    return index[index >= 0].bincount(minlength=math.prod(_root_shape(roots)))
