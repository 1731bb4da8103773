"""The demo model: a small CLIP tower, LLaVA's projector and a small Llama, and how they are saved in LLaVA's format.

Everything is built from transformers' own modules.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava.model.builder import load_pretrained_model

WIDTH = 128
CONTEXT = 2048
SELECTED_LAYER = -2
QLIP_SETTINGS = {"max_tokens": 128}
"""The settings that the checkpoint ships with: the defaults, with a budget of twice its own native grid."""
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Architecture:
    """Sizes of tower and language model, which have the same width."""

    width: int = WIDTH
    tower_layers: int = 5
    """LLaVA reads the last but one."""
    decoder_layers: int = 3
    heads: int = 4


JOINT = Architecture()
"""Architecture of the recipe `joint`: 1.9 million weights."""
LLAVA = Architecture(width=160, tower_layers=6, decoder_layers=4, heads=5)
"""Architecture of the recipe `llava`: 3.5 million weights."""


class DemoModel(nn.Module):
    """The three parts of a LLaVA."""

    def __init__(self, vocab_size: int, architecture: Architecture = JOINT) -> None:
        super().__init__()
        width = architecture.width
        self.tower = CLIPVisionModel(vision_config(architecture))
        self.projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.decoder = LlamaForCausalLM(decoder_config(vocab_size, architecture))
        _initialise(self)

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes normalised images (B, 3, H, W).

        Returns:
            Patch features (B, N, D) of the layer that LLaVA reads, and the pooled [CLS] (B, D).
        """
        seen = self.tower(pixels, output_hidden_states=True)
        return seen.hidden_states[SELECTED_LAYER][:, 1:], seen.pooler_output


def vision_config(architecture: Architecture = JOINT) -> CLIPVisionConfig:
    """Builds the tower's config: 8 x 8 cells of 14 pixels."""
    return CLIPVisionConfig(
        hidden_size=architecture.width,
        intermediate_size=4 * architecture.width,
        projection_dim=architecture.width,
        num_hidden_layers=architecture.tower_layers,
        num_attention_heads=architecture.heads,
        image_size=112,
        patch_size=14,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )


def decoder_config(vocab_size: int, architecture: Architecture = JOINT) -> LlamaConfig:
    """Builds the language model's config; token ids as Llama's."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.width,
        intermediate_size=8 * math.ceil(architecture.width / 3),
        num_hidden_layers=architecture.decoder_layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def sincos_2d(side: int, width: int) -> Tensor:
    """Computes smooth codes of the places on a `side x side` grid: float (side * side, width), raster order."""
    frequencies = math.pi * torch.exp(torch.linspace(math.log(0.25), math.log(2.5), width // 4))
    angles = torch.linspace(-1, 1, side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, cols = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, cols], dim=-1).reshape(side * side, width)


@torch.no_grad()
def _initialise(model: DemoModel) -> None:
    """Scales weights by fan-in, since std 0.02 is too small here, and sets the position table to 2-D sines."""
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif name.endswith("embed_tokens.weight"):
            weight.normal_(std=0.3)
        elif name.endswith("class_embedding"):
            weight.normal_(std=0.1)
        elif name.endswith("position_embedding.weight"):
            weight[0].zero_()
            weight[1:] = 0.3 * sincos_2d(math.isqrt(len(weight) - 1), weight.shape[1])
        elif weight.ndim > 1:
            into_residual = any(part in name for part in ("o_proj", "out_proj", "down_proj", "fc2"))
            weight.normal_(std=(0.5 if into_residual else 0.8) / math.sqrt(weight[0].numel()))


def llava_state_dict(model: DemoModel) -> dict[str, Tensor]:
    """Collects the weights in float16 under the keys of LLaVA v1.5 checkpoints."""
    parts = {
        "": model.decoder,
        "model.mm_projector.": model.projector,
        "model.vision_tower.vision_tower.vision_model.": model.tower,
    }
    return {
        prefix + name: weight.detach().to("cpu", torch.float16).contiguous()
        for prefix, part in parts.items()
        for name, weight in part.state_dict().items()
    }


def load_model(folder: Path) -> DemoModel:
    """Loads a LLaVA checkpoint of the demo model's architecture, in float32, for training or saving."""
    _, llava, _, _ = load_pretrained_model(folder, device="cpu", qlip=False, dtype=torch.float32)
    vision = llava.get_vision_tower().vision_tower.config
    architecture = Architecture(
        width=llava.config.hidden_size,
        tower_layers=vision.num_hidden_layers,
        decoder_layers=llava.config.num_hidden_layers,
        heads=llava.config.num_attention_heads,
    )
    model, state = DemoModel(llava.config.vocab_size, architecture), llava.state_dict()
    model.decoder.load_state_dict({name: state[name] for name in model.decoder.state_dict()})
    model.projector.load_state_dict(llava.get_model().mm_projector.state_dict())
    model.tower.load_state_dict(llava.get_vision_tower().vision_tower.state_dict())
    return model


def save_checkpoint(model: DemoModel, tokenizer_folder: Path, folder: Path, qlip: dict = QLIP_SETTINGS) -> None:
    """Writes a LLaVA v1.5 checkpoint that needs nothing outside its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(llava_state_dict(model), folder / "model.safetensors", metadata={"format": "pt"})
    config = _fields(model.decoder.config) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "torch_dtype": "float16",
        "mm_vision_tower": ".",
        "mm_vision_config": _fields(model.tower.config),
        "mm_hidden_size": model.tower.config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": SELECTED_LAYER,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": CONTEXT,
        "conv_mode": "vicuna_v1",
        "qlip": qlip,
    }
    write_json(folder / "config.json", config)
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", tokens)
    write_json(folder / "preprocessor_config.json", preprocessor_config(model.tower.config.image_size))
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)


def preprocessor_config(size: int) -> dict:
    """Describes CLIP's image processing for square images of `size` pixels, as transformers saves it."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
        "do_convert_rgb": True,
    }


def _fields(config: PreTrainedConfig) -> dict:
    """Collects what describes the architecture: the fields of the config's own class, without those common to all."""
    common = PreTrainedConfig().to_dict()
    tokens = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    own = {name: value for name, value in config.to_dict().items() if name not in common or name == "model_type"}
    return {name: value for name, value in (own | tokens).items() if value is not None}


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object, its names sorted."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
