"""LLaVA on Qwen1.5 and Qwen2: the class that checkpoints of type "llava_qwen" name."""

from __future__ import annotations

from transformers import Qwen2ForCausalLM, Qwen2Model

from llava.model.config import LlavaQwenConfig
from llava.model.language_model.common import UNSPLIT_TOWERS, ImageLanguageModel, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaQwenModel(LlavaMetaModel, Qwen2Model):
    """Qwen2's trunk, a vision tower and a projector."""

    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(ImageLanguageModel, Qwen2ForCausalLM):
    """Qwen2 with images."""

    config_class = LlavaQwenConfig
    text_class = Qwen2ForCausalLM
    trunk_class = LlavaQwenModel
    _no_split_modules = ["Qwen2DecoderLayer", *UNSPLIT_TOWERS]


register(LlavaQwenForCausalLM)
