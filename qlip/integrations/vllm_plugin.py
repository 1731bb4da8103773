"""A plugin of vLLM, for images of different numbers of tokens in one step of the server.

vLLM's schemas of LLaVA's and LLaVA-NeXT's image embeddings ask for one number of tokens for all images that one step of
the engine schedules, even across requests; differing counts crash the engine (vLLM 0.32). All code after
the schemas takes a list of tensors. vLLM finds the plugin by the entry point `vllm.general_plugins` of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

logger = logging.getLogger(__name__)

SCHEMAS = ("LlavaImageEmbeddingInputs", "LlavaNextImageEmbeddingInputs")
"""vLLM's schemas by name: importing their modules here would load all that vLLM's models need, in every process."""


def register() -> None:
    """Lets vLLM's schemas take lists of embeddings of any lengths. Calling it again changes nothing."""
    try:
        from torch import Tensor
        from vllm.utils.tensor_schema import TensorSchema, TensorShape
    except ImportError as error:
        logger.warning("vLLM's schemas were not found (%s): images of different token counts may end its engine", error)
        return
    of_any_length = Annotated[Tensor | list[Tensor], TensorShape("bn", "ifs", "hs", dynamic_dims={"ifs"})]
    validate: Callable[[Any], None] = TensorSchema.validate
    if getattr(validate, "of_qlip", False):
        return

    def validate_lists(self: Any) -> None:
        if type(self).__name__ in SCHEMAS:
            type(self).__annotations__["data"] = of_any_length
        validate(self)

    validate_lists.of_qlip = True  # type: ignore[attr-defined]
    TensorSchema.validate = validate_lists
