"""The parts that LLaVA's language models share: the constructor around a trunk with images, and the registration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.llava_arch import LlavaMetaForCausalLM

UNSPLIT_TOWERS = ["CLIPVisionTower", "CLIPVisionTowerS2", "QLIPVisionTower"]
"""A device map never splits a tower: it is loaded as a whole, and small compared to the language model."""


class ImageLanguageModel(LlavaMetaForCausalLM):
    """Builds a causal language model of transformers around a trunk that has a tower and a projector."""

    text_class: ClassVar[Any]
    """transformers' model without images, a base of the class."""

    trunk_class: ClassVar[Any]
    """The trunk with images."""

    def __init__(self, config: Any) -> None:
        super(self.text_class, self).__init__(config)  # skips its own constructor, which would build a text-only trunk
        self.model = self.trunk_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def own_name(cls, name: str) -> str:
        """Finds a parameter's name in the model from that in LLaVA's files."""
        for pattern, new in cls.weight_names.items():
            name = re.sub(pattern, new, name)
        return name

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Loads parameters, also by the names that `save_pretrained` writes, as a resumed training does."""
        return super().load_state_dict(
            {self.own_name(name): value for name, value in state_dict.items()}, *args, **kwargs
        )


def register(model_class: Any) -> None:
    """Makes a model's type known to transformers' auto classes."""
    config_class = model_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
