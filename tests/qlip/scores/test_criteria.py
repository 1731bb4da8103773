"""What each block score responds to, on small synthetic images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qlip.scores.structure import halve
from tests.qlip.samples import paper_partition

P = 4


def sizes(image: torch.Tensor, alpha: float, criterion: str, **options) -> dict[tuple[int, int], int]:
    """Top-left cell -> size of each leaf."""
    leaves = paper_partition(image, P, alpha=alpha, criterion=criterion, **options)
    return {(row, col): size for row, col, size in leaves.boxes.tolist()}


def blank(cells: int = 4) -> torch.Tensor:
    return torch.zeros(3, cells * P, cells * P)


def single_score(image: torch.Tensor, criterion: str, expected: float) -> None:
    """The top-left 2 x 2 block of the 4 x 4 grid scores `expected`: it splits there and not just above."""
    assert sizes(image, expected * (1 - 1e-5), criterion)[0, 0] == 1
    assert sizes(image, expected * (1 + 1e-5), criterion)[0, 0] == 2


def test_gradient_adds_both_differences_of_one_pixel():
    image = blank()
    image[1, 3, 3] = 5.0  # the pixel itself sees 5 down and 5 across
    single_score(image, "gradient", 10.0)


def test_gradient_takes_the_largest_channel_and_does_not_add_them():
    image = blank()
    image[0, 2, 2], image[1, 5, 5] = 3.0, 4.0
    single_score(image, "gradient", 8.0)


@pytest.mark.parametrize(("row", "col"), [(7, 3), (3, 7), (7, 7), (7, 0), (0, 7)])
def test_gradient_counts_a_missing_difference_as_zero_and_keeps_the_other(row, col):
    """A dot on the block's last row or column: it, and the neighbours inside the block, see one step each."""
    image = blank()
    image[0, row, col] = 5.0
    single_score(image, "gradient", 5.0)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_counts_a_step_between_cells_at_the_very_edge_of_the_block(transposed):
    """A ramp below nothing: the largest step is that of the last column, where no horizontal difference exists."""
    image = blank()
    image[:, 4:8, :8] = torch.arange(8.0)
    single_score(image.mT if transposed else image, "gradient", 7.0)


@pytest.mark.parametrize("criterion", ["gradient", "diagonal", "variance", "structure"])
def test_a_block_sees_only_its_own_pixels(criterion):
    """A step exactly on the border of two blocks leaves both whole."""
    image = blank()
    image[:, :, 8:] = 1.0
    image[:, 8:, :] += 2.0
    assert set(sizes(image, 1e-6, criterion, structure_size=3).values()) == {2}


@pytest.mark.parametrize("criterion", ["gradient", "diagonal", "variance", "structure"])
@pytest.mark.parametrize("block", [(0, 0), (0, 2), (2, 0), (2, 2)])
def test_the_block_that_holds_the_detail_splits_and_no_other(block, criterion):
    image = blank()
    image[:, block[0] * P + 3 : block[0] * P + 5, block[1] * P + 3 : block[1] * P + 5] = 1.0
    found = sizes(image, 0.01, criterion, structure_size=3)
    split = {(row // 2 * 2, col // 2 * 2) for (row, col), size in found.items() if size == 1}
    assert split == {block}


def test_diagonal_is_signed():
    rising, falling = blank(), blank()
    rising[0, 3:, 3:] = 1.0
    falling[0, :3, :3] = 1.0
    single_score(rising, "diagonal", 1.0)
    assert sizes(falling, 1e-30, "diagonal")[0, 0] == 2


def test_diagonal_is_zero_where_all_diagonals_fall():
    image = blank() - torch.arange(4.0 * P)
    assert len(paper_partition(image, P, alpha=0.0, criterion="diagonal")) == 16
    assert len(paper_partition(image, P, alpha=1e-30, criterion="diagonal")) == 4


def test_variance_is_unbiased_and_weighed_by_area():
    image = blank()
    image[2, :4, :8] = 2.0  # half of the 64 pixels at 2, half at 0
    variance = 64 / 63
    single_score(image, "variance", 64 * variance / (16 * 16 / 1000))


def test_variance_survives_a_large_mean():
    image = blank() + 1000.0
    image[0, :4, :8] += 0.125
    expected = 64 * (0.0625**2 * 64 / 63) / (16 * 16 / 1000)
    assert sizes(image, expected * 0.99, "variance")[0, 0] == 1
    assert sizes(image, expected * 1.01, "variance")[0, 0] == 2
    assert sizes(image, expected * 0.01, "variance")[2, 2] == 2


def test_structure_asks_for_detail_too_fine_for_the_sampling():
    """A bar of 4 pixels is 2 samples wide in a block of 2 cells: an opening of 3 removes it, one of 12 pixels stays."""
    for width, split in ((4, True), (12, False)):
        image = torch.zeros(3, 16 * P, 16 * P)
        image[:, :, 24 : 24 + width] = 1.0
        found = paper_partition(image, P, alpha=0.9, criterion="structure", structure_size=3, max_leaf=2)
        assert (1 in found.boxes[:, 2].tolist()) == split


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_structure_sees_bright_and_dark_alike(sign):
    image = blank()
    image[0, 2:4, 2:4] = sign
    assert sizes(image, 0.9, "structure", structure_size=3)[0, 0] == 1


def test_structure_of_a_block_is_at_least_that_of_its_children():
    """Fine stripes average out at the coarse level, yet the fine level's score still splits the root."""
    image = torch.zeros(1, 32, 32)
    image[:, :8, 2:8:4], image[:, :8, 3:8:4] = 1.0, 1.0
    found = sizes(image, 0.9, "structure", structure_size=3)
    assert found[0, 0] == 1 and found[4, 4] == 4


def triangle(height: int) -> torch.Tensor:
    """A bright triangle on a dark ground, 24 of whose pixels on all sides are ground."""
    image = torch.zeros(3, height + 48, height + 48)
    for row in range(height):
        middle, half = 24 + height // 2, row // 2 + 1
        image[:, 24 + row, middle - half : middle + half] = 1.0
    return image


def test_objects_leaves_the_corners_of_a_large_object_whole_and_structure_splits_them():
    large = triangle(80)
    for criterion, split in (("structure", True), ("objects", False)):
        assert (1 in sizes(large, 0.5, criterion, structure_size=5, max_leaf=4).values()) == split, criterion
    assert 1 in sizes(triangle(16), 0.5, "objects", structure_size=5, max_leaf=4).values()


def test_objects_splits_a_line_alone_and_not_one_that_is_a_part_of_something_wide():
    line = torch.zeros(3, 128, 128)
    line[:, 60:62, 8:120] = 1.0
    hung = line.clone()
    hung[:, 40:80, 8:48] = 1.0
    for image, split in ((line, True), (hung, False), (-line, True), (-hung, False)):
        assert (1 in sizes(image, 0.4, "objects", structure_size=5, max_leaf=2).values()) == split


def test_random_is_reproducible_and_ignores_the_pixels():
    image = torch.randn(3, 64, 64)
    first = paper_partition(image, P, alpha=0.5, criterion="random")
    again = paper_partition(torch.zeros(3, 64, 64), P, alpha=0.5, criterion="random")
    seeded = paper_partition(image, P, alpha=0.5, criterion="random", generator=torch.Generator().manual_seed(0))
    other = paper_partition(image, P, alpha=0.5, criterion="random", generator=torch.Generator().manual_seed(1))
    assert torch.equal(first.boxes, again.boxes) and torch.equal(first.boxes, seeded.boxes)
    assert not torch.equal(first.boxes, other.boxes)


def test_a_threshold_above_every_random_score_keeps_the_roots():
    assert len(paper_partition(torch.zeros(3, 64, 64), P, alpha=1.0, criterion="random")) == 4


@pytest.mark.parametrize(("criterion", "alpha"), [("gradient", 10.0), ("diagonal", 10.0), ("variance", 1000.0)])
@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (1, 1)])
def test_moving_the_picture_by_whole_roots_moves_the_leaves(shift, criterion, alpha):
    """A block's score depends on its pixels and not on its place."""
    root = 4
    torch.manual_seed(0)
    content = torch.randn(3, root * P, root * P) * torch.rand(root * P).cumsum(0)
    here, there = torch.zeros(3, 8 * P, 8 * P), torch.zeros(3, 8 * P, 8 * P)
    here[:, : root * P, : root * P] = content
    row, col = shift[0] * root, shift[1] * root
    there[:, row * P : (row + root) * P, col * P : (col + root) * P] = content
    before, after = sizes(here, alpha, criterion), sizes(there, alpha, criterion)
    moved = {(r + row, c + col): size for (r, c), size in before.items() if r < root and c < root}
    assert {place: after[place] for place in moved} == moved
    assert len(after) == len(before)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 29, 35), (1, 2, 3)])
def test_halving_an_image_is_average_pooling_to_the_bit(shape):
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    pooled = F.avg_pool2d(image[None], 2)[0]
    assert torch.equal(halve(image), pooled) and torch.equal(torch.from_numpy(halve(image.numpy())), pooled)
