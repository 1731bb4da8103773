"""Weight files are written as safetensors takes them."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from scripts.weight_files import write


def test_weights_that_share_memory_are_written_as_two(tmp_path):
    """As tied ones in a .bin file; safetensors takes no two names of one memory."""
    table = torch.arange(6.0).view(2, 3)
    tensors, written = {"model.embed_tokens.weight": table, "lm_head.weight": table}, {}
    write(tmp_path, "pytorch_model.bin", tensors, written)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], table) for name in tensors)
    assert written == dict.fromkeys(tensors, "model.safetensors")
