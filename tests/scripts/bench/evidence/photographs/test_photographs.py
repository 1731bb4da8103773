"""Photographs: which there are, what is counted and drawn, and that times add up."""

from __future__ import annotations

import torch
from PIL import Image
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from qlip import QLIPConfig
from scripts.bench.evidence.photographs.__main__ import TIMED
from scripts.bench.evidence.photographs.collection import LICENCES, Photograph, load_photographs
from scripts.bench.evidence.photographs.sheet import CAPTION, SIDE, draw_sheet
from scripts.bench.evidence.photographs.times import STAGES, Times, measure_stages, times_table
from scripts.bench.evidence.photographs.tokens import SETTINGS, count_tokens, tokens_table


def flat(name: str, width: int, height: int) -> Photograph:
    return Photograph(name, Image.new("RGB", (width, height), "grey"), "here", "ours")


def test_there_are_twenty_photographs_and_crops_from_the_wheels_alone(monkeypatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a photograph is not in the wheel")

    monkeypatch.setattr("skimage.data._fetchers._ensure_cache_dir", download)
    photographs = load_photographs()
    assert len(photographs) == 20
    assert len({item.picture.tobytes() for item in photographs}) == 20
    assert sum(not item.cropped for item in photographs) == len(LICENCES) + 1
    assert all(item.licence for item in photographs)
    assert photographs[-2].picture.size == (320, 427)  # the left half of the rocket, 640 x 427


def test_flat_pictures_cost_the_roots_alone() -> None:
    """Hand counts: CLIP's 24 x 24 cells, 24 x 12 for two squares; the paper's has roots of 2 cells at 672 px."""
    pictures = [flat("square", 672, 672), flat("wide", 600, 300)]
    chosen = {name: SETTINGS[name] for name in ("the paper's geometry", "the defaults, no budget")}
    counts = count_tokens(pictures, chosen)
    assert counts["the paper's geometry"][0] == 576
    assert counts["the defaults, no budget"] == [576, 288]
    text = tokens_table(pictures, counts)
    assert "| wide | 600 x 300 |" in text
    assert text.splitlines()[-1].endswith("| 0.75 |")  # the mean of 576 and 288


def test_the_sheet_has_a_place_for_each_picture() -> None:
    sheet = draw_sheet([flat("a", 28, 28), flat("b", 56, 28), flat("c", 28, 28)], QLIPConfig(), columns=2)
    assert sheet.size == (2 * SIDE, 2 * (SIDE + CAPTION))
    assert sheet.getpixel((2 * SIDE - 1, 2 * SIDE - 1)) == (255, 255, 255)  # no fourth picture
    assert sheet.getpixel((10, SIDE + CAPTION + 10)) != (255, 255, 255)


def test_every_way_has_its_stages_and_tokens() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_attention_heads=1)
    config._attn_implementation = "sdpa"
    layer = CLIPEncoderLayer(config).eval()
    rows = measure_stages([flat("a", 336, 336)], {"ours": QLIPConfig()}, 1, layer)
    assert [(row.name, row.tokens, tuple(row.seconds)) for row in rows] == [
        ("CLIP", 576, ("prepare", "tower")),
        ("ours", 576, STAGES),
    ]
    assert all(lap > 0 for row in rows for lap in row.seconds.values())


def test_times_are_shares_of_clips_total() -> None:
    rows = [
        Times("CLIP", 576, {"prepare": 1.0, "tower": 3.0}),
        Times("ours", 300, {"prepare": 1.0, "tower": 1.0}),
    ]
    lines = times_table(rows).splitlines()
    assert lines[2] == "| CLIP | 576 | 0.250 | 0.750 | 1.00 |"
    assert lines[3] == "| ours | 300 | 0.250 | 0.250 | 0.50 |"
    assert set(TIMED) <= set(SETTINGS)
