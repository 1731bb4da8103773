"""LLaVA's models, for transformers' auto classes too. Importing the package loads nothing heavy.

There is none on MPT: transformers' MptForCausalLM has no `position_ids` and ignores an argument of that name (ALiBi
counts tokens), so the positions of an image's tokens would be lost silently.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.config import LlavaConfig, LlavaMistralConfig
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaMistralConfig", "LlavaMistralForCausalLM"]

_MODULES = ("llava.model.language_model.llava_llama", "llava.model.language_model.llava_mistral", "llava.model.config")


def __getattr__(name: str) -> Any:
    """Loads all models when one is first used: each registers itself with transformers' auto classes.

    A submodule that was not imported yet is found, too, as LLaVA's package imports its own.
    """
    if name not in __all__:
        if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")
    for module in map(import_module, _MODULES):
        globals().update({found: getattr(module, found) for found in __all__ if hasattr(module, found)})
    return globals()[name]


def __dir__() -> list[str]:
    """Lists the lazy names too."""
    return sorted({*globals(), *__all__})
