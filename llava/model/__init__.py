"""LLaVA's models. Importing this package registers them with transformers' auto classes.

There is none on MPT: transformers' MptForCausalLM has no `position_ids` and swallows what it is given by that name
(ALiBi counts tokens), so that the places of an image's tokens would be lost without a word.
"""

from llava.model.config import LlavaConfig, LlavaMistralConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaMistralConfig", "LlavaMistralForCausalLM"]
