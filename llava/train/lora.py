"""LoRA adapters of the language model: which layers get them, and how they are written so that LLaVA reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from llava.train.arguments import TrainingArguments

OTHER_PARTS = ("mm_projector", "vision_tower", "vision_resampler", "lm_head")
EXCLUDED = r".*\b(?:mm_projector|vision_tower|lm_head)\b.*"
"""Modules outside the language model's blocks, as a regular expression on their full names."""

EARLY_FIELDS = frozenset(
    ["auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights"]
    + ["layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r"]
    + ["revision", "target_modules", "task_type", "rank_pattern", "alpha_pattern"]
)
"""Fields of adapter_config.json that the peft of LLaVA's time knows; it refuses a file with others."""


def find_all_linear_names(model: nn.Module) -> list[str]:
    """Lists the last names of the language model's linear layers, as LLaVA does: "q_proj", "up_proj", ..."""
    names = {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not any(part in name for part in OTHER_PARTS)
    }
    return sorted(names - {"lm_head"})


def add_adapters(model: Any, args: TrainingArguments) -> Any:
    """Wraps a model in peft's, with fresh adapters on the language model's linear layers; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        target_modules=find_all_linear_names(model),
        exclude_modules=EXCLUDED,  # the tower's layers have the same last names
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,  # type: ignore[arg-type]
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft reads it
        return get_peft_model(model, config)


def simplify_adapter_config(folder: Path) -> None:
    """Drops the fields of adapter_config.json that older versions of peft refuse; none changes what it means here.

    The excluded modules are not needed to load: only layers with matrices in the file are adapted.
    """
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    kept = {name: value for name, value in values.items() if name in EARLY_FIELDS}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
