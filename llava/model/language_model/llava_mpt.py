"""LLaVA on MPT: the class that checkpoints of type "llava_mpt" name. Its parts have MPT's names in files only."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import MptForCausalLM, MptModel

from llava.model.config import LlavaMptConfig
from llava.model.language_model.common import UNSPLIT_TOWERS, ImageLanguageModel, register
from llava.model.llava_arch import MPT_NAMES, LlavaMetaModel


class LlavaMptModel(LlavaMetaModel, MptModel):
    """MPT's trunk, a vision tower and a projector."""

    config_class = LlavaMptConfig
    embed_tokens = property(lambda self: self.wte)
    layers = property(lambda self: self.blocks)

    def build_mpt_alibi_tensor(self, num_heads: int, sequence_length: int, *args: Any, **kwargs: Any) -> Tensor:
        """Builds the bias by distance, also for a cache with more slots than the context; the surplus is cut."""
        return super().build_mpt_alibi_tensor(num_heads, 2 * sequence_length, *args, **kwargs)


class LlavaMptForCausalLM(ImageLanguageModel, MptForCausalLM):
    """MPT with images."""

    config_class = LlavaMptConfig
    text_class = MptForCausalLM
    trunk_class = LlavaMptModel
    weight_names = MPT_NAMES
    base_model_prefix = "model"
    transformer = property(lambda self: self.model)
    _tied_weights_keys: Any = {"lm_head.weight": "model.wte.weight"}  # noqa: RUF012 (as in its base)
    _no_split_modules = ["MptBlock", *UNSPLIT_TOWERS]


register(LlavaMptForCausalLM)
