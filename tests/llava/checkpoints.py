"""Small random LLaVA checkpoints on disk, in every format that users have.

The weights are those of transformers' own LlavaForConditionalGeneration, renamed here by hand, so that it serves as an
independent oracle for whatever is loaded from them.
"""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save, save_file
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava.constants import IMAGE_TOKEN_INDEX
from tests.weights import randomise

VOCABULARY = 384
IMAGE_TOKEN = VOCABULARY - 1
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "image_size": 112,
    "patch_size": 14,
    "projection_dim": 64,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
PROMPT = torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30, 31]])
PICTURE = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: what is in the picture? ASSISTANT: a red circle and a blue square",
]


def transformers_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """The oracle: random weights large enough that different inputs give clearly different logits."""
    config = LlavaConfig(
        vision_config=VISION,
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
        image_seq_length=64,
    )
    return randomise(LlavaForConditionalGeneration(config), seed=seed)


def llava_state(model: LlavaForConditionalGeneration, tower_prefix: str = "vision_model.") -> dict[str, Tensor]:
    """The oracle's weights under LLaVA's names."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.")
        name = name.replace("model.vision_tower.", f"model.vision_tower.vision_tower.{tower_prefix}")
        name = name.replace("model.multi_modal_projector.linear_1.", "model.mm_projector.0.")
        name = name.replace("model.multi_modal_projector.linear_2.", "model.mm_projector.2.")
        renamed[name] = tensor.clone()
    if "model.wte.weight" in renamed:  # MPT's trunk
        return {re.sub("^model\\.", "transformer.", name): tensor for name, tensor in renamed.items()}
    return renamed


def llava_config(**changes: Any) -> dict[str, Any]:
    """A config.json as LLaVA v1.5 writes it."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **TEXT,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": VISION["hidden_size"],
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048,
        "freeze_mm_mlp_adapter": False,
        "torch_dtype": "float32",
        **changes,
    }


@cache
def tokenizer_model() -> bytes:
    """The file of a SentencePiece tokenizer, trained once for all checkpoints."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=VOCABULARY - 24,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece tokenizer.model alone, as LLaVA's checkpoints have it."""
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>", "legacy": False}))


@cache
def llava_weights() -> bytes:
    """The file of the oracle's weights, made once for all checkpoints."""
    return save(llava_state(transformers_model()), {"format": "pt"})


def make_llava_checkpoint(folder: Path, qlip: Any = None, **config: Any) -> Path:
    """A folder as LLaVA saves one: safetensors, tower weights inside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(llava_weights())
    flag = {} if qlip is None else {"qlip": qlip}
    (folder / "config.json").write_text(json.dumps(llava_config(**flag, **config)))
    write_tokenizer(folder)
    return folder


def write_config(folder: Path, **changes: Any) -> None:
    """A config.json as LLaVA writes it, and a tokenizer, in a folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(llava_config(**changes)))
    write_tokenizer(folder)


def write_shards(folder: Path, state: dict[str, Tensor], suffix: str) -> Path:
    """Weights in two files, ".safetensors" or ".bin", and their index, whose path comes back."""
    stem, places = {".safetensors": "model", ".bin": "pytorch_model"}[suffix], {}
    for number in (1, 2):
        shard = {name: state[name] for name in list(state)[number - 1 :: 2]}
        file = folder / f"{stem}-0000{number}-of-00002{suffix}"
        save_file(shard, file, {"format": "pt"}) if suffix == ".safetensors" else torch.save(shard, file)
        places.update(dict.fromkeys(shard, file.name))
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def write_tower(folder: Path, model: LlavaForConditionalGeneration, dtype: torch.dtype = torch.float32) -> Path:
    """The oracle's vision tower as a separate CLIP checkpoint."""
    vision = CLIPVisionModel(model.config.vision_config)
    vision.load_state_dict(model.model.vision_tower.state_dict())
    vision.to(dtype).save_pretrained(folder)
    square = {"height": VISION["image_size"], "width": VISION["image_size"]}
    CLIPImageProcessorPil(size={"shortest_edge": VISION["image_size"]}, crop_size=square).save_pretrained(folder)
    return folder


def write_language_model(folder: Path, model: LlavaForConditionalGeneration) -> Path:
    """The oracle's language model alone, as a Vicuna is published."""
    llama = LlamaForCausalLM(model.config.text_config)
    llama.model.load_state_dict(model.model.language_model.state_dict())
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    llama.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def oracle_logits(model: LlavaForConditionalGeneration) -> Tensor:
    """What transformers' class answers to `PROMPT` about `PICTURE`."""
    ids = torch.tensor([[1, 20] + [IMAGE_TOKEN] * 64 + [30, 31]])
    with torch.no_grad():
        return model(ids, pixel_values=PICTURE.to(model.dtype), attention_mask=torch.ones_like(ids)).logits


def logits(model: Any) -> Tensor:
    """What our model answers to `PROMPT` about `PICTURE`."""
    with torch.no_grad():
        return model(PROMPT, images=PICTURE).logits


def load_llava_state(model: LlavaForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Gives the oracle weights that have LLaVA's names; those left out stay."""
    theirs = dict(zip(llava_state(model), model.state_dict(), strict=True))
    model.load_state_dict({theirs[name]: tensor for name, tensor in state.items()}, strict=False)


def projector_state(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """The oracle's projector under LLaVA's names."""
    return {name: tensor for name, tensor in llava_state(model).items() if "mm_projector" in name}
