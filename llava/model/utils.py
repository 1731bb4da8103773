"""Upgrades checkpoints of LLaVA v0, whose config.json has the model type of a plain Llama."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import PreTrainedConfig


def auto_upgrade(config: str | Path) -> None:
    """Sets the model type of a LLaVA v0 checkpoint, after asking on the terminal; others stay unchanged.

    Such a checkpoint is of type "llama" and has LLaVA's fields (`mm_...`). `load_pretrained_model` takes it unchanged;
    transformers' auto classes would build a Llama without its tower.

    Args:
        config: folder or hub id; only a folder can be changed.

    Raises:
        ValueError: it needs the change, and the user declines or it is not a folder.
    """
    values, _ = PreTrainedConfig.get_config_dict(str(config))
    if values.get("model_type") != "llama" or not any(name.startswith("mm_") for name in values):
        return
    file = Path(config) / "config.json"
    if not file.is_file():
        raise ValueError(f"{config} is a LLaVA v0 checkpoint and no folder here; download it to upgrade it")
    print(f"{file} is of LLaVA v0: its model_type is 'llama', and should be 'llava_llama'.")
    try:
        answer = input("Change it? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError(f"{file} is unchanged; change its model_type to 'llava_llama' to continue")
    values = json.loads(file.read_text(encoding="utf-8"))
    values |= {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
    replacement = file.with_suffix(".json.new")
    replacement.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(replacement, file)
