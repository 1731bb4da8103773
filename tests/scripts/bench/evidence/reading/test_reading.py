"""Where a sign's text lies among leaves, and trees that see it at full size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.model.vision.image_tokens import ImageTokens
from playground.objects import Sign
from qlip.language_positions import ImageSpan
from qlip.quadtree import Leaves
from scripts.bench.evidence.reading.__main__ import main
from scripts.bench.evidence.reading.cuts import Area, find_text, share_at_full_size, split_area, text_area
from scripts.bench.evidence.reading.exchange import exchange
from scripts.bench.evidence.reading.tables import exchange_rows, tree_rows
from scripts.bench.evidence.reading.trees import EXCHANGES, TREES, Reading

# 2 x 2 native cells of 2 x 2 cells each; the upper right one is split.
TREE = Leaves(torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1], [2, 0, 2], [2, 2, 2]]), (4, 4))


def test_text_is_the_plate_without_its_margin() -> None:
    """A plate of 18 x 48 px around (56, 112) whose capitals are 10 px high, so that 4 px lie above and beside them."""
    sign = Sign("stop", centre=(56, 112), box=(18, 48), height=10)
    assert text_area(sign, size=(112, 224), grid=(8, 16)) == pytest.approx((51 / 14, 92 / 14, 61 / 14, 132 / 14))


@pytest.mark.parametrize(
    ("area", "share"),
    [
        (Area(0, 2, 2, 4), 1.0),
        (Area(0, 1, 1, 3), 0.5),
        (Area(0.5, 1.5, 1.5, 2.25), 1 / 3),
        (Area(2, 0, 4, 4), 0.0),
    ],
)
def test_the_share_at_full_size_is_that_in_single_cells(area: Area, share: float) -> None:
    assert share_at_full_size(TREE, area) == pytest.approx(share)


def test_leaves_are_split_where_they_overlap_the_text_and_only_there() -> None:
    split = split_area(Leaves(torch.tensor([[0, 0, 4], [0, 4, 4]]), (4, 8)), Area(0.5, 0.5, 1.5, 0.9))
    singles = [[row, col, 1] for row in (0, 1) for col in (0, 1)]
    assert split.boxes.tolist() == sorted([*singles, [0, 2, 2], [2, 0, 2], [2, 2, 2], [0, 4, 4]])


corner = st.integers(0, 30).map(lambda eighths: eighths / 8)


@given(corner, corner, st.integers(1, 32), st.integers(1, 32))
def test_what_is_split_is_at_full_size_and_covers_the_grid_once(top: float, left: float, high: int, wide: int) -> None:
    area = Area(top, left, min(top + high / 8, 4.0), min(left + wide / 8, 4.0))
    split = split_area(TREE, area)
    assert share_at_full_size(split, area) == pytest.approx(1)
    assert (split.token_map() >= 0).all() and int((split.sizes**2).sum()) == 16


def test_a_row_tells_how_many_signs_its_shares_are_of_and_what_it_gains() -> None:
    readings = [Reading(90, 1.0, True), Reading(100, 1.0, False), Reading(110, 0.25, False)]
    better = [Reading(90, 1.0, True)] * 3
    first, second = tree_rows("mixed/signs 8-12 at 448", {"a tree": readings, "another": better})
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["signs 8-12 at 448", "a tree", "100.0", "75.0", "66.7", "33.3", "", "50.0 of 2", "0.0 of 1"]
    cells = [cell.strip() for cell in second.strip("|").split("|")]
    assert cells == ["", "another", "90.0", "100.0", "100.0", "100.0", "**66.7** [0.0, 100.0]", "100.0 of 3", "none"]


def test_leaves_of_the_text_are_those_that_overlap_it() -> None:
    """The lower right native cell begins where the text ends."""
    assert find_text(TREE, Area(0.5, 1.5, 2, 3)).tolist() == [True, True, False, True, False, False, False]


def encoded(values: list[float], sizes: list[float]) -> ImageTokens:
    count = len(values)
    return ImageTokens(torch.tensor(values)[:, None], ImageSpan(count, None, count, torch.tensor(sizes)))


def test_the_text_as_one_tree_sees_it_stands_beside_the_tokens_of_another() -> None:
    """The default's tree has three tokens beside the two of the text, the other one."""
    full, text = encoded([1, 2, 3, 4, 5], [0.5, 0.25, 0.25, 2, 0.5]), torch.tensor([False, True, True, False, False])
    sparse, sparse_text = encoded([20, 30, 60], [0.25, 0.25, 1]), torch.tensor([True, True, False])
    made = exchange(full, text, sparse, sparse_text)
    assert {name: tokens.features[:, 0].tolist() for name, tokens in made.items()} == {
        "both default's": [1, 2, 3, 4, 5],
        "text of the grid's": [1, 20, 30, 4, 5],
        "others of the grid's": [2, 3, 60],
        "both grid's": [20, 30, 60],
        "others weighed as native": [1, 2, 3, 4, 5],
    }
    weights = {name: tokens.span.sizes for name, tokens in made.items()}
    assert weights.pop("others weighed as native").tolist() == [1, 0.25, 0.25, 1, 1]
    assert {name: len(sizes) for name, sizes in weights.items()} == {name: len(made[name].features) for name in weights}
    assert full.features[:, 0].tolist() == [1, 2, 3, 4, 5]


def test_weights_cannot_be_exchanged_where_there_are_none() -> None:
    tokens = ImageTokens(torch.zeros(2, 1), ImageSpan.sequential(2))
    text = torch.tensor([True, False])
    with pytest.raises(ValueError, match="llm_size_bias is 0"):
        exchange(tokens, text, tokens, text)


def test_a_row_of_exchanges_names_both_trees_and_what_it_gains() -> None:
    readings = {name: [Reading(80, 1.0, name == "both grid's")] * 2 for name in EXCHANGES}
    lines = exchange_rows("mixed/signs 8-12 at 448", readings)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["signs 8-12 at 448", "the default's", "the default's", "80.0", "0.0", ""]
    assert rows[3] == ["", "the grid's", "the grid's", "80.0", "100.0", "**100.0** [100.0, 100.0]"]


def test_every_way_is_asked_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    marks = ("reading: causes", "reading: exchanges")
    page.write_text("".join(f"<!-- {mark} -->\n<!-- end {mark} -->\n" for mark in marks))
    assert main(["--scenes", "2", "--sets", "mixed/signs 12-20 at 448", "--page", str(page)]) == 0
    tables = {mark: page.read_text().split(f"{mark} -->\n")[1].split("<!--")[0].splitlines() for mark in marks}
    for head, _, *lines in tables.values():
        assert {line.count("|") for line in lines} == {head.count("|")}
    trees, exchanges = (lines[2:] for lines in tables.values())
    assert [*trees, *exchanges] == capsys.readouterr().out.splitlines()[: len(trees) + len(exchanges)]
    shown = {row.split("|")[2].strip(): row.split("|")[4].strip() for row in trees}
    assert list(shown) == list(TREES)
    assert {shown[name] for name in TREES if "text split" in name} == {"100.0"}
    assert [tuple(cell.strip() for cell in row.split("|")[2:4]) for row in exchanges] == list(EXCHANGES.values())
