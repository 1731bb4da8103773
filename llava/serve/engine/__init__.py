"""The generation engine: turns prompts and images into streams of text.

`ChatEngine` is loaded on first use, so that programs without a model can import its errors and settings alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.serve.engine.chat_engine import ChatEngine

__all__ = ["ChatEngine"]


def __getattr__(name: str) -> Any:
    """Loads `ChatEngine` on first use."""
    if name == "ChatEngine":
        from llava.serve.engine.chat_engine import ChatEngine

        return ChatEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
