"""Small LLaVA models on each language model, and transformers' Llava with the same weights as their oracle."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import IMAGE_TOKEN, TEXT, VISION, VOCABULARY, llava_config, llava_state, write_tokenizer
from tests.weights import randomise

GROUPED = {**TEXT, "num_key_value_heads": 2}
LLAMA_3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MPT_ATTENTION = {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "clip_qkv": None} | {
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", **GROUPED, "sliding_window": None, "rope_theta": 1e6},
    "mistral, window": {"model_type": "mistral", **GROUPED, "sliding_window": 40},
    "llama 3": {
        "model_type": "llama",
        **GROUPED,
        "rope_theta": 5e5,
        "rope_scaling": {**LLAMA_3_ROPE, "original_max_position_embeddings": 64},
        "eos_token_id": [5, 6],
    },
    "yi": {"model_type": "llama", **TEXT, "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}
    | {"rope_theta": 5e6, "eos_token_id": 7, "pad_token_id": 0},
    "qwen2": {"model_type": "qwen2", **GROUPED, "rope_theta": 1e6, "tie_word_embeddings": True, "bos_token_id": None},
    "qwen2, window": {"model_type": "qwen2", **GROUPED, "use_sliding_window": True, "sliding_window": 40}
    | {"max_window_layers": 1},
    "mpt": {"model_type": "mpt", "vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 2}
    | {"max_seq_len": 2048, "tie_word_embeddings": True, "use_cache": False, "attn_config": MPT_ATTENTION},
}
"""Fields of the language models' own config.json, as their publishers write them."""

TYPES = {"mistral": "llava_mistral", "llama": "llava_llama", "mpt": "llava_mpt", "qwen2": "llava_qwen"}
COUNTED = {"llm_positions": "sequential", "llm_size_bias": 0.0}
"""The settings of QLIP that MPT allows."""

PIXELS = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
PROMPT = [1, 20, IMAGE_TOKEN_INDEX, 30, 31, IMAGE_TOKEN_INDEX, 32]
LONG = [token for i in PROMPT for token in ([IMAGE_TOKEN] * 64 if i == IMAGE_TOKEN_INDEX else [i])]


def make_oracle(kind: str) -> LlavaForConditionalGeneration:
    """transformers' Llava on a language model, with random weights, biases of the attention included."""
    tied = KINDS[kind].get("tie_word_embeddings", False) and kind != "mpt"  # whose embeddings it can't tie
    config = LlavaConfig(
        vision_config=VISION,
        text_config={**KINDS[kind], "tie_word_embeddings": tied},
        image_token_index=IMAGE_TOKEN,
        image_seq_length=64,
        tie_word_embeddings=tied,
    )
    oracle = randomise(LlavaForConditionalGeneration(config))
    if kind == "mpt":
        # Small rows, or every token, whose embedding is its own row of the output layer, would predict itself.
        trunk = oracle.model.language_model
        oracle.lm_head.weight.data.copy_(trunk.wte.weight.data.mul_(0.05))
        trunk.norm_f.weight.data.mul_(20)
    return oracle


def write_checkpoint(folder: Path, kind: str, oracle: LlavaForConditionalGeneration, **changes: Any) -> Path:
    """The oracle as LLaVA saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = llava_state(oracle)
    if KINDS[kind].get("tie_word_embeddings"):
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    own = {**KINDS[kind], "model_type": TYPES[KINDS[kind]["model_type"]]}
    values = llava_config(**own, **changes)
    if kind == "mpt":
        values = {name: value for name, value in values.items() if name in own or name not in TEXT}
    (folder / "config.json").write_text(json.dumps(values))
    write_tokenizer(folder)
    return folder


def load_both(kind: str) -> tuple[LlavaForConditionalGeneration, Any]:
    """Makes an oracle and loads this package's model with its weights."""
    oracle = make_oracle(kind)
    with TemporaryDirectory() as folder:
        return oracle, load_pretrained_model(write_checkpoint(Path(folder), kind, oracle), device="cpu")[1]
