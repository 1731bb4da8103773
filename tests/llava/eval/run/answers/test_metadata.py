"""What an answer's metadata says it was made by."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from llava.eval.run.answers.metadata import checkpoint_hash
from tests.llava.checkpoints import llava_state, make_llava_checkpoint, transformers_model, write_config, write_tower


def test_a_tower_in_another_folder_is_hashed_with_the_checkpoint(tmp_path: Path) -> None:
    """Else a run would continue with answers that another tower has seen."""
    oracle, tower = transformers_model(), tmp_path / "clip"
    write_tower(tower, oracle)
    folder = make_llava_checkpoint(tmp_path / "llava")
    state = {name: tensor for name, tensor in llava_state(oracle).items() if "vision_tower" not in name}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    write_config(folder, mm_vision_tower=str(tower), mm_vision_config=None)
    before = checkpoint_hash(str(folder), None)
    assert checkpoint_hash(str(folder), None) == before
    weights = load_file(tower / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tower / "model.safetensors", {"format": "pt"})
    assert checkpoint_hash(str(folder), None) != before
