"""LLaVA on Mistral: the class that checkpoints of type "llava_mistral" name."""

from __future__ import annotations

from transformers import MistralForCausalLM, MistralModel

from llava.model.config import LlavaMistralConfig
from llava.model.language_model.common import UNSPLIT_TOWERS, ImageLanguageModel, register
from llava.model.llava_arch import LlavaMetaModel


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral's trunk, a vision tower and a projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(ImageLanguageModel, MistralForCausalLM):
    """Mistral with images."""

    config_class = LlavaMistralConfig
    text_class = MistralForCausalLM
    trunk_class = LlavaMistralModel
    _no_split_modules = ["MistralDecoderLayer", *UNSPLIT_TOWERS]


register(LlavaMistralForCausalLM)
