"""LLaVA v1.5 for today's PyTorch and transformers.

`import llava` makes its checkpoints known to transformers' auto classes and imports nothing heavy.
"""

from typing import Any

from llava.auto_classes import register_lazily

__all__ = ["LlavaLlamaForCausalLM"]

register_lazily()


def __getattr__(name: str) -> Any:
    """`from llava import LlavaLlamaForCausalLM`, without importing torch for those who want a constant."""
    if name in __all__:
        from llava import model

        return getattr(model, name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
