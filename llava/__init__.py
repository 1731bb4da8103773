"""LLaVA v1.5 for today's PyTorch and transformers."""

from typing import Any

__all__ = ["LlavaLlamaForCausalLM"]


def __getattr__(name: str) -> Any:
    """`from llava import LlavaLlamaForCausalLM`, without importing torch for those who want a constant."""
    if name in __all__:
        from llava import model

        return getattr(model, name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
