"""Embeddings for vLLM hold one image each: nothing of the images beside it in the batch leaves the process."""

from __future__ import annotations

import base64
import io

import pytest
import torch

import qlip
from qlip.integrations.vllm import encode_embeds
from tests.qlip.integrations.models import PICTURES, attached


def decode(text: str) -> torch.Tensor:
    """What vLLM's server makes of it."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


def assert_alone(tensor: torch.Tensor) -> None:
    assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_image_has_memory_of_its_own(batch_size):
    model, _ = attached("llava", alpha=0.3, llm_positions="sequential", llm_size_bias=0.0)
    for embeds in qlip.vllm_image_embeds(model, PICTURES, batch_size):
        assert_alone(embeds)
        assert torch.equal(decode(encode_embeds(embeds)), embeds)


@pytest.mark.parametrize("part", [slice(2, 5), (slice(None), slice(1, 3))], ids=["rows", "columns"])
def test_a_payload_holds_its_own_rows_only(part):
    whole = torch.arange(40.0).reshape(10, 4)
    embeds = decode(encode_embeds(whole[part]))
    assert torch.equal(embeds, whole[part])
    assert_alone(embeds)
