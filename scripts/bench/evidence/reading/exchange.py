"""A sign's text as the tower saw it in one tree, beside the tokens of another. Pure tensor functions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llava.model.vision.image_tokens import ImageTokens
from scripts.bench.evidence.reading.trees import EXCHANGES


def exchange(full: ImageTokens, text: Tensor, sparse: ImageTokens, sparse_text: Tensor) -> dict[str, ImageTokens]:
    """Builds the tokens of every one of `EXCHANGES`.

    Args:
        full: N tokens of the default's tree with its text split.
        text: bool (N,), which of them are the text's.
        sparse: M tokens of CLIP's grid with the text split.
        sparse_text: bool (M,), which of those are the text's: as many, in the same order.
    """
    views = (
        full,
        with_text(full, text, sparse.features[sparse_text]),
        with_text(sparse, sparse_text, full.features[text]),
        sparse,
        weigh_as_native(full, text),
    )
    return dict(zip(EXCHANGES, views, strict=True))


def with_text(tokens: ImageTokens, text: Tensor, features: Tensor) -> ImageTokens:
    """Replaces the features of a text's tokens, which keep their positions and weights."""
    mixed = tokens.features.clone()
    mixed[text] = features
    return tokens.with_features(mixed)


def weigh_as_native(tokens: ImageTokens, text: Tensor) -> ImageTokens:
    """Lets every token but a text's weigh in the language model's attention as one of a native cell does.

    Raises:
        ValueError: no token weighs by its size.
    """
    if tokens.span.sizes is None:
        raise ValueError("all tokens weigh the same, whatever their size: the model's llm_size_bias is 0")
    sizes = torch.where(text.to(tokens.span.sizes.device), tokens.span.sizes, 1.0)
    return replace(tokens, span=replace(tokens.span, sizes=sizes))
