"""Image embeddings for vLLM: the tower and the projector run here, the language model there.

For LLaVA and LLaVA-NeXT, vLLM takes one tensor of projected tokens per image, of any length. LLaVA-NeXT's is the leaves
of one quadtree, or of one a tile, with its newlines. `scripts.harness.vllm_check` compares a live server's answers.
"""

from __future__ import annotations

import base64
import io
import logging
from typing import Any

import torch
from torch import Tensor

from qlip.config import check_count
from qlip.images.arrays import list_images
from qlip.integrations.llava import LlavaMixin

logger = logging.getLogger(__name__)


@torch.no_grad()
def vllm_image_embeds(model: Any, images: Any, batch_size: int = 8) -> list[Tensor]:
    """Computes what vLLM takes as `multi_modal_data={"image": [...]}`, with `enable_mm_embeds=True`.

    vLLM counts positions one by one and biases no attention, and no question is known here: attach with
    `llm_positions="sequential"`, `llm_size_bias=0` and `budget="score"` to get the same answers as here; other settings
    are named in a warning.

    Args:
        model: an attached LlavaForConditionalGeneration or LlavaNext; vLLM has no VipLlava.
        images: one or more, as the image processor takes them.
        batch_size: images per pass of the tower.

    Returns:
        One (N_i, D) tensor per image, on the CPU, in the model's dtype; D is the language model's width. The prompt has
        one <image> for each, which vLLM expands to N_i tokens itself.

    Raises:
        TypeError: the model is not attached, or has no language model; or `batch_size` is not an integer.
        ValueError: `batch_size` is below 1, or there is no image.
    """
    check_count("batch_size", batch_size)
    if not isinstance(model, LlavaMixin):
        raise TypeError(
            f"{type(model).__name__} is not an attached LLaVA model; call qlip.attach(model, processor) first"
        )
    settings = model.attachment.vision.qlip
    lost = [f"llm_positions={settings.llm_positions!r}"] if settings.llm_positions != "sequential" else []
    lost += [f"llm_size_bias={settings.llm_size_bias}"] if settings.llm_size_bias else []
    lost += [f"llm_weight={settings.llm_weight!r}"] if settings.llm_weight != "each" else []
    lost += [f"budget={settings.budget!r}"] if settings.budget != "score" else []
    if lost:
        logger.warning("vLLM can't follow %s: its answers will differ from this model's", ", ".join(lost))
    embeds: list[Tensor] = []
    batch = list_images(images)
    for start in range(0, len(batch), batch_size):
        packed = model.attachment.image_processor.pack(batch[start : start + batch_size])
        output = model.get_image_features(**packed)
        embeds += [features.cpu().clone() for features in output.pooler_output]  # a view keeps the whole batch
    return embeds


def encode_embeds(embeds: Tensor) -> str:
    """Encodes one image's (N, D) as the base64 text that vLLM's OpenAI-compatible server takes as `image_embeds`."""
    buffer = io.BytesIO()
    own = embeds.detach().cpu().clone(memory_format=torch.contiguous_format)
    torch.save(own, buffer)  # of a view the whole tensor would be written
    return base64.b64encode(buffer.getvalue()).decode()
