"""Gradio's Blocks with readable errors for malformed requests, and no traceback in the log for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction

from llava.serve.web.toasts import toast_error

logger = logging.getLogger(__name__)


def fill_buttons(block_fn: BlockFunction, inputs: list[Any]) -> list[Any]:
    """Inserts None for inputs that are buttons, which a program leaves out: they are not parameters of the API."""
    buttons = [place for place, block in enumerate(block_fn.inputs) if isinstance(block, gr.Button)]
    if len(inputs) != len(block_fn.inputs) - len(buttons):
        return inputs
    filled = list(inputs)
    for place in buttons:
        filled.insert(place, None)
    return filled


class PageBlocks(gr.Blocks):
    """Blocks that show every failure as one of our toasts and log only errors of the server.

    Gradio prints a traceback for each value that its components refuse, and gives the client no reason.
    """

    def get_api_info(self, *args: Any, **options: Any) -> Any:
        """Describes the API. A picture that the page shows at first is no default: it would be a path of the server."""
        info = super().get_api_info(*args, **options)
        for endpoint in info["named_endpoints"].values():
            for parameter in endpoint["parameters"]:
                if isinstance(parameter["parameter_default"], Mapping):
                    parameter.update(parameter_has_default=False, parameter_default=None)
        return info

    async def preprocess_data(
        self, block_fn: BlockFunction, inputs: list[Any], *args: Any, **options: Any
    ) -> list[Any]:
        """Prepares a client's values for a handler; any failure here is the client's error."""
        try:
            return await super().preprocess_data(block_fn, fill_buttons(block_fn, inputs), *args, **options)
        except gr.Error as error:
            raise toast_error(f"{error.message.rstrip('.')}. Reload the page.") from None
        except Exception as error:
            logger.warning("refused the values of a call of %r (%s)", block_fn.api_name, type(error).__name__)
            what = "This request does not fit the page"
            raise toast_error(f"{what}: a value is missing, or is none of its component's. Reload the page.") from None

    async def call_function(self, block_fn: BlockFunction | int, *args: Any, **options: Any) -> Any:
        """Runs a handler; its own errors are toasts already, any other is logged."""
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        if function.fn is None:
            raise toast_error("This event runs in the browser only.")
        try:
            return await super().call_function(function, *args, **options)
        except gr.Error:
            raise
        except Exception as error:
            logger.error("the handler of %r failed", function.api_name, exc_info=error)
            raise toast_error("The server failed; its log says why. Try again.") from None
