"""The benchmark of training's batches: its samples are what it says, and every way trains on the same tokens."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from llava.model.loading.tokenizer import load_tokenizer
from llava.utils import demo_model_path
from scripts.bench import training_ways
from scripts.bench.training import data_table, steps_table
from scripts.bench.training_ways import LONGEST, SHORTEST, SIDES, WAYS, measure, write_samples


def test_answers_are_short_and_long_and_images_of_every_size(tmp_path: Path) -> None:
    samples = json.loads(write_samples(tmp_path, 64).read_text())
    tokenizer = load_tokenizer(demo_model_path())
    lengths = sorted(len(tokenizer(f"{sample['conversations'][1]['value']}</s>").input_ids) - 1 for sample in samples)
    assert lengths[0] in range(SHORTEST, 3 * SHORTEST) and lengths[-1] in range(LONGEST // 2, LONGEST + 1)
    assert 20 < lengths[32] < 80  # the geometric mean of 5 and 300 is 39
    images = [sample["image"] for sample in samples if "image" in sample]
    assert 0.5 < len(images) / 64 < 0.95
    assert {Image.open(tmp_path / name).size for name in images} == {(side, side) for side in SIDES}
    assert all(("<image>" in sample["conversations"][0]["value"]) == ("image" in sample) for sample in samples)


def test_every_way_trains_on_the_same_tokens_within_the_same_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small images and answers, and a small model in place of the benchmark's own."""
    small = {"SIDES": (112, 168), "LONGEST": 60, "WARM_UP": 0, "WORKERS": (0, 1)}
    small["VISION"] = {**training_ways.VISION, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    small["TEXT"] = {**training_ways.TEXT, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    for name, value in small.items():
        monkeypatch.setattr(training_ways, name, value)
    options = argparse.Namespace(samples=4, batch_size=2, max_length=512, repeats=1, bf16=False)
    figures = measure("random-13m", options, tmp_path)
    ways = figures["ways"]
    assert [way["name"] for way in ways] == list(WAYS)
    assert len({way["target_tokens"] for way in ways}) == 1
    assert all(way["samples"] == 4 and len(way["rates"]) == 1 and way["rates"][0] > 0 for way in ways)
    assert max(way["longest"] for way in ways[2:]) <= min(way["longest"] for way in ways[:2])
    assert [row["workers"] for row in figures["data"]] == [0, 1]
    assert steps_table("random-13m", ways).count("\n") == 1 + len(WAYS)


def test_the_tables_show_medians_of_ratios_within_a_turn() -> None:
    common = {"steps": 4, "samples": 10, "longest": 900, "padding": 0.255}
    rows = [
        {"name": "a", "rates": [100.0, 200.0, 400.0], **common},
        {"name": "b", "rates": [200.0, 500.0, 600.0], **common},
    ]
    last = steps_table("model", rows).splitlines()[-1]
    assert last == "| b | 2.5 | 900 | 26% | 500 | 2.00 | 1.50 to 2.50 |"
    data = [{"model": "model", "workers": 2, "prepared": [10.0, 30.0, 20.0], "consumed": [5.0, 6.0, 10.0]}]
    assert data_table(data).splitlines()[-1] == "| model | 2 | 20 | 6 | 2.0 |"
