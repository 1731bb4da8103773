"""Both loaders get the same weights, and the report's ratios are those of turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava.model.builder import load_pretrained_model
from scripts.bench.loading_peer import WAYS, llava_name, report, write_both


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
    *_, first, second, ratio = report(turns).splitlines()
    assert [float(cell) for cell in first.split()[1:]] == [3.0, 1.0, 20.0, 40.0]
    assert [float(cell) for cell in second.split()[1:]] == [1.0, 1.0, 10.0, 20.0]
    assert [float(cell) for cell in ratio.split()[1:]] == pytest.approx([2.0, 1.0, 3.0, 3.0])
