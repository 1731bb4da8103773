"""LLaVA's models."""

from llava.model.config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]
