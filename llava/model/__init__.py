"""LLaVA's models, for transformers' auto classes too. Importing the package loads nothing heavy."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.config import LlavaConfig, LlavaMistralConfig, LlavaMptConfig, LlavaQwenConfig
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
    from llava.model.language_model.llava_mpt import LlavaMptForCausalLM
    from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM

_HOMES = {
    "LlavaConfig": "llava.model.config",
    "LlavaLlamaForCausalLM": "llava.model.language_model.llava_llama",
    "LlavaMistralConfig": "llava.model.config",
    "LlavaMistralForCausalLM": "llava.model.language_model.llava_mistral",
    "LlavaMptConfig": "llava.model.config",
    "LlavaMptForCausalLM": "llava.model.language_model.llava_mpt",
    "LlavaQwenConfig": "llava.model.config",
    "LlavaQwenForCausalLM": "llava.model.language_model.llava_qwen",
}
__all__ = [
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
    "LlavaQwenConfig",
    "LlavaQwenForCausalLM",
]


def __getattr__(name: str) -> Any:
    """Loads all models when one is first used, and registers them with transformers' auto classes.

    A submodule that was not imported yet is found, too, as LLaVA's package imports its own.
    """
    if name in _HOMES:
        from llava.model.config import register_models

        register_models()
        return getattr(import_module(_HOMES[name]), name)
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """Lists the lazy names too."""
    return sorted({*globals(), *__all__})
