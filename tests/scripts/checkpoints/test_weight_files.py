"""Weight files are read in every format of .bin, and written as safetensors takes them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from scripts.checkpoints.weight_files import dtype_of_files, read, write


def test_weights_that_share_memory_are_written_as_two(tmp_path):
    """As tied ones in a .bin file; safetensors takes no two names of one memory."""
    table = torch.arange(6.0).view(2, 3)
    tensors, written = {"model.embed_tokens.weight": table, "lm_head.weight": table}, {}
    write(tmp_path, "pytorch_model.bin", tensors, written)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], table) for name in tensors)
    assert written == dict.fromkeys(tensors, "model.safetensors")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before PyTorch 1.6"])
def test_bin_files_of_both_formats_are_read(tmp_path, zipped):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(6.0)}, file, _use_new_zipfile_serialization=zipped)
    ((name, tensor),) = read(file)
    assert name == "a" and torch.equal(tensor, torch.arange(6.0))
    assert dtype_of_files(tmp_path) == torch.float32
