"""The models that `batch.py` asks, written to folders: random weights, the embedded model's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading.tokenizer import load_tokenizer
from llava.utils import demo_model_path
from scripts.bench.cost_models import CLIP_LARGE

LLAMA_160M = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
CLIP_TINY = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "image_size": 112,
    "patch_size": 14,
    "projection_dim": 64,
}
LLAMA_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def write_160m(folder: Path) -> None:
    """Writes a LLaVA with a CLIP-L-shaped tower, QLIP, and a language model of 160 million parameters."""
    torch.manual_seed(0)
    config = LlavaConfig(
        **LLAMA_160M, mm_vision_config=dict(CLIP_LARGE), mm_projector_type="mlp2x_gelu", qlip={"max_tokens": 576}
    )
    LlavaLlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(demo_model_path()).save_pretrained(folder)


def write_upstream(folder: Path) -> None:
    """Writes a tiny LLaVA as LLaVA's own code saves one: its model type, its names of weights, CLIP elsewhere."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(demo_model_path())
    shape = {**LLAMA_TINY, "vocab_size": len(tokenizer)}
    config = LlavaConfig(**shape, mm_vision_config=dict(CLIP_TINY), mm_projector_type="mlp2x_gelu")
    model = LlavaLlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tower = folder / "clip-tiny"
    model.get_vision_tower().vision_tower.save_pretrained(tower)
    side = CLIP_TINY["image_size"]
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(tower)
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    del written["mm_vision_config"]
    written |= {"model_type": "llava", "mm_vision_tower": str(tower), "image_aspect_ratio": "pad"}
    file.write_text(json.dumps(written), encoding="utf-8")


WRITERS = {"random-160m": write_160m, "upstream-tiny": write_upstream}
"""Name -> what writes the checkpoint."""
