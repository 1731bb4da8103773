"""LLaVA v1.5 for today's PyTorch and transformers.

`import llava` registers its checkpoints with transformers' auto classes and imports nothing heavy.
"""

import logging
from typing import Any

from llava.auto_classes import register_lazily
from qlip import __version__

__all__ = ["LlavaLlamaForCausalLM", "__version__"]

register_lazily()


def _is_kept(record: logging.LogRecord) -> bool:
    """Whether to keep a record of bitsandbytes: not its advice to install a package that is not needed here."""
    return not (isinstance(record.args, tuple) and any(isinstance(arg, ModuleNotFoundError) for arg in record.args))


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_kept)


def __getattr__(name: str) -> Any:
    """Loads `LlavaLlamaForCausalLM` when it is first used, so that a constant costs no import of torch."""
    if name in __all__:
        from llava import model

        return getattr(model, name)
    raise AttributeError(f"module 'llava' has no attribute {name!r}")
