"""LLaVA on Llama: Vicuna, Llama 2 and 3, Yi; the class that LLaVA v1.5 checkpoints name."""

from __future__ import annotations

from transformers import LlamaForCausalLM, LlamaModel

from llava.model.config import LlavaConfig
from llava.model.language_model.common import UNSPLIT_TOWERS, ImageLanguageModel, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's trunk, a vision tower and a projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(ImageLanguageModel, LlamaForCausalLM):
    """Llama with images."""

    config_class = LlavaConfig
    text_class = LlamaForCausalLM
    trunk_class = LlavaLlamaModel
    _no_split_modules = ["LlamaDecoderLayer", *UNSPLIT_TOWERS]


register(LlavaLlamaForCausalLM)
