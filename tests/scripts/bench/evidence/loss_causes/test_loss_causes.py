"""Features of CLIP's grid and of a quadtree are exchanged, to see which of them lose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.model.vision.image_tokens import ImageTokens
from llava.utils import demo_model_path
from qlip import Leaves
from qlip.language_positions import ImageSpan
from scripts.bench.evidence.answering.answers import Cell
from scripts.bench.evidence.loss_causes.__main__ import head, main, rows
from scripts.bench.evidence.loss_causes.exchange import exchange_features

# 2 x 2 native cells of 2 x 2 cells each; the upper right one is split.
TREE = Leaves(torch.tensor([[0, 0, 2], [0, 2, 1], [0, 3, 1], [1, 2, 1], [1, 3, 1], [2, 0, 2], [2, 2, 2]]), (4, 4))
CLIP = ImageTokens(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), ImageSpan.sequential(4))
QLIP = ImageTokens(
    torch.tensor([[10.0], [20.0], [21.0], [22.0], [25.0], [30.0], [40.0]]),
    ImageSpan(7, torch.tensor([0, 0.75, 1.25, 1.5, 1.75, 2, 3]), 4, None),
)


def test_features_are_exchanged_by_hand_count():
    ways = {way: tokens.features[:, 0].tolist() for way, tokens in exchange_features(CLIP, QLIP, TREE, 2).items()}
    assert ways == {
        "CLIP's grid": [1, 2, 3, 4],
        "the quadtree": [10, 20, 21, 22, 25, 30, 40],
        "its places, all features CLIP's": [1, 2, 2, 2, 2, 3, 4],
        "its places, split cells' features CLIP's": [10, 2, 2, 2, 2, 30, 40],
        "its places, whole cells' features CLIP's": [1, 20, 21, 22, 25, 3, 4],
        "CLIP's places, its features averaged in a cell": [10, 22, 30, 40],
    }


def test_tokens_keep_the_places_that_their_name_says():
    for way, tokens in exchange_features(CLIP, QLIP, TREE, 2).items():
        assert tokens.span is QLIP.span if "its places" in way else tokens.span.count == len(tokens.features)


def test_every_way_is_asked_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text("<!-- loss causes -->\n<!-- end loss causes -->\n")
    flags = ["--model-path", str(demo_model_path()), "--scenes", "2", "--sets", "base", "--page", str(page)]
    assert main(flags) == 0
    # Pictures of the native size are not split: every way is CLIP's.
    shown = [row.split("|")[3:] for row in page.read_text().splitlines()[3:-1]]
    assert len(shown) == 6 and all(row == shown[0] for row in shown)
    assert page.read_text().splitlines()[1:-1] == capsys.readouterr().out.splitlines()


def answered(colour: str) -> dict[str, Cell]:
    right = {"colour": colour, "shape": "11", "relation": "11", "count": colour, "existence": "11"}
    return {"a way": Cell([{"right": right, "pictures": dict.fromkeys(right, [0, 1]), "tokens": [64, 66]}])}


def test_checkpoints_are_reported_together_with_their_own_shares():
    (line,) = rows("base", [answered("00"), answered("10")])
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["base", "a way", "65.0"] and cells[3].startswith("**75.0** [")
    assert cells[4] == "66.7 / 83.3" and cells[5] == "**25.0** [0.0, 50.0]"
    assert len(head(several=True).splitlines()[0].split("|")) == len(line.split("|"))
