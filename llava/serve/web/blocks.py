"""Gradio's blocks, where a request that no browser would send gets an error in words and leaves no traceback."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction

from llava.serve.web.toasts import complaint

logger = logging.getLogger(__name__)


class PageBlocks(gr.Blocks):
    """Blocks whose every failure is a toast of ours; only faults of the server are logged.

    Gradio prints a traceback for each value that its components refuse, and gives its client no reason.
    """

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], *args: Any, **options: Any
    ) -> list[Any]:
        """Prepares what a client sent for a handler; whatever fails here is the client's fault."""
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **options)
        except gr.Error as error:
            raise complaint(f"{error.message.rstrip('.')}. Reload the page.") from None
        except Exception as error:
            what = f"This request does not fit the page ({type(error).__name__})"
            raise complaint(f"{what}: a value is missing, or is none of its component's. Reload the page.") from None

    async def call_function(self, block_fn: BlockFunction | int, *args: Any, **options: Any) -> Any:
        """Runs a handler, whose own errors are toasts already; what else fails is logged."""
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if function.fn is None:
            raise complaint("This event runs in the browser only.")
        try:
            return await super().call_function(function, *args, **options)
        except gr.Error:
            raise
        except Exception as error:
            logger.error("the handler of %r failed", function.api_name, exc_info=error)
            raise complaint("The server failed; its log says why. Try again.") from None
