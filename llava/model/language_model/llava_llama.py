"""LLaVA on Llama (Vicuna): the class that LLaVA v1.5 checkpoints name."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, LlamaModel

from llava.model.config import LlavaConfig
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """Llama's trunk, a vision tower and a projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """Llama with images."""

    config_class = LlavaConfig
    # A device map never splits a tower: it is loaded as a whole, and small compared to the language model.
    _no_split_modules = ["LlamaDecoderLayer", "CLIPVisionTower", "QLIPVisionTower"]

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # skips LlamaForCausalLM, which would build a text-only trunk
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        """The trunk."""
        return self.model


AutoConfig.register(LlavaConfig.model_type, LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
