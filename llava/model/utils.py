"""Checkpoints of LLaVA's first versions, whose config.json does not say that they are LLaVA's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import PreTrainedConfig


def auto_upgrade(config: str | Path) -> None:
    """Makes a checkpoint of LLaVA v0 say what it is, after asking on the terminal; others are left as they are.

    Such a checkpoint is of type "llama" and has LLaVA's fields (`mm_...`). `load_pretrained_model` takes it as it is;
    transformers' auto classes would build a Llama without its tower.

    Args:
        config: folder or hub id; what is changed lies in a folder.

    Raises:
        ValueError: it would have to be changed, and is not to be or can't be.
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
        raise ValueError(f"{file} is left as it is; change its model_type to 'llava_llama' to go on")
    values = json.loads(file.read_text(encoding="utf-8"))
    values |= {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
    replacement = file.with_suffix(".json.new")
    replacement.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(replacement, file)
