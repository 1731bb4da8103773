"""The generation engine: prompts and images in, streams of text out.

`ChatEngine` is loaded when it is first used, since programs without a model need no more than its errors and settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.serve.engine.chat_engine import ChatEngine

__all__ = ["ChatEngine"]


def __getattr__(name: str) -> Any:
    """Loads the engine."""
    if name == "ChatEngine":
        from llava.serve.engine.chat_engine import ChatEngine

        return ChatEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
