"""LLaVA on Mistral: the class that checkpoints of type "llava_mistral" name."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MistralForCausalLM, MistralModel

from llava.model.config import LlavaMistralConfig
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """Mistral's trunk, a vision tower and a projector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaMetaForCausalLM, MistralForCausalLM):
    """Mistral with images."""

    config_class = LlavaMistralConfig
    # A device map never splits a tower: it is loaded as a whole, and small compared to the language model.
    _no_split_modules = ["MistralDecoderLayer", "CLIPVisionTower", "QLIPVisionTower"]

    def __init__(self, config: LlavaMistralConfig) -> None:
        super(MistralForCausalLM, self).__init__(
            config
        )  # skips MistralForCausalLM, which would build a text-only trunk
        self.model = LlavaMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaMistralModel:
        """The trunk."""
        return self.model


AutoConfig.register(LlavaMistralConfig.model_type, LlavaMistralConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM, exist_ok=True)
