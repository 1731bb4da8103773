"""The loss of an MLP prior to a frozen tower (paper section 3.2), and its grid term solved in closed form."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlip.config import Interpolation
from qlip.encoder import QLIPVisionModel
from qlip.mlp import CoordinateMLP
from qlip.positions import interpolate_positions, native_side
from qlip.prior.batches import Batch
from qlip.quadtree import Leaves, partition_as


class PriorLoss(nn.Module):
    """The two terms of the loss of a prior to a frozen tower.

    Args:
        prior: trained.
        tower: its settings define the quadtree, except alpha and the seed of random splits, which come with the batch.
        projection: CLIP's, for the consistency term of the authors' released script; None for the paper's.
    """

    def __init__(self, prior: CoordinateMLP, tower: QLIPVisionModel, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.prior = prior
        self.tower = tower.requires_grad_(False).eval()
        self.projection = None if projection is None else projection.requires_grad_(False)
        self.native = Leaves.uniform((tower.native_grid, tower.native_grid))

    def forward(self, batch: Batch) -> Tensor:
        """Computes float32 (2,): the consistency term, and the grid term, the mean absolute difference to the table."""
        return torch.stack([self.consistency(batch), self.grid_errors().mean()])

    def grid_errors(self) -> Tensor:
        """Computes float32 (n * n, D): absolute differences of prior and position table on the native grid."""
        return (self.place(self.native) - self.tower.position_table.float()).abs()

    def place(self, leaves: Leaves, mode: Interpolation = "mlp") -> Tensor:
        """Computes positions of leaves, float32 (N, D), by default those of the prior without the residual."""
        return interpolate_positions(self.tower.position_table, leaves, mode, self.prior, mlp_residual=False)

    def consistency(self, batch: Batch, mode: Interpolation = "mlp") -> Tensor:
        """Computes the mean difference of E(native size, uniform) and E(larger, quadtree) over the images.

        It is the L2 norm for pooled outputs E; with a projection the mean square over D, of E projected to unit length.
        """
        tower = self.tower
        with torch.no_grad():
            reference = self._embed(list(batch.references), [self.native] * len(batch.references), "bicubic")
        patch_size, native_grid = tower.config.patch_size, tower.native_grid
        leaves = [
            partition_as(replace(tower.qlip, alpha=alpha, seed=seed), image, patch_size, native_grid)
            for image, alpha, seed in zip(batch.images, batch.alphas, batch.seeds, strict=True)
        ]
        difference = self._embed(batch.images, leaves, mode) - reference
        return difference.norm(dim=1).mean() if self.projection is None else difference.square().mean()

    def _embed(self, images: list[Tensor], leaves: list[Leaves], mode: Interpolation) -> Tensor:
        """Computes E of `consistency`, float32 (B, D), with positions of `mode`; bicubic is exact on the native one."""
        cls = self.tower.cls_position.float()
        positions = [torch.cat([cls, self.place(tree, mode)]) for tree in leaves]
        pooled = self.tower.encode(images, leaves, positions, pool=True).pooled
        if pooled is None:
            raise ValueError("the tower has no pooled output")
        if self.projection is None:
            return pooled.float()
        with torch.autocast(pooled.device.type, enabled=False):  # differences of unit vectors are small
            return F.normalize(self.projection(pooled.float()), dim=1)


@torch.no_grad()
def solve_last_layer(prior: CoordinateMLP, table: Tensor) -> None:
    """Makes a prior exact on the native grid by the smallest change of its last layer's weights and bias.

    Least squares in float64 on the CPU. Exact where the n * n points do not outnumber the last layer's inputs and bias,
    as with 24 x 24 points and 1024 inputs; else as near as the last layer can come.

    Args:
        prior: changed in place.
        table: float (n * n, D), the position table without [CLS].
    """
    last, side = cast(nn.Linear, prior.layers[-1]), native_side(table)
    body = copy.deepcopy(prior).cpu()
    body.layers[-1] = nn.Identity()
    table = table.detach().cpu()
    inputs = interpolate_positions(table, Leaves.uniform((side, side)), "mlp", body, mlp_residual=False)
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1).double()  # (n * n, hidden + 1)
    weights = torch.cat([last.weight.T, last.bias[None]]).double().cpu()  # (hidden + 1, D)
    weights = weights + torch.linalg.lstsq(inputs, table.double() - inputs @ weights).solution
    last.weight.copy_(weights[:-1].T)
    last.bias.copy_(weights[-1])
