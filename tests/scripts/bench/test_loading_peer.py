"""Both loaders get the same weights, and the report's ratios are those of turns."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from llava.model.builder import load_pretrained_model
from scripts.bench.loading_peer import WAYS, llava_name, report, write_both
from tests.scripts.bench.tables import read_table


def test_both_formats_hold_one_model(tmp_path: Path) -> None:
    size = write_both("tiny", tmp_path / "ours", tmp_path / "theirs")
    ours = load_pretrained_model(tmp_path / "ours", device="cpu", torch_dtype="bfloat16")[1]
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "theirs", dtype="bfloat16")
    found = {name.replace("vision_model.", ""): tensor for name, tensor in ours.named_parameters()}
    expected = {llava_name(name).replace("vision_model.", ""): own for name, own in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert size == sum(2 * tensor.numel() for tensor in found.values())


def test_ratios_are_medians_of_turns() -> None:
    def load(seconds: float, private: float) -> dict:
        return {"seconds": (seconds, 1.0), "private": private, "total": 2 * private}

    ours, theirs = [load(2.0, 10.0), load(9.0, 30.0), load(3.0, 20.0)], [load(1.0, 10.0), load(9.0, 10.0), load(1.0, 5)]
    turns = [dict(zip(WAYS, pair, strict=True)) for pair in zip(ours, theirs, strict=True)]
    figures = [[float(cell) for cell in row[1:]] for row in read_table(report(turns))]
    assert figures == [[3.0, 1.0, 20.0, 40.0], [1.0, 1.0, 10.0, 20.0], [2.0, 1.0, 3.0, 3.0]]
