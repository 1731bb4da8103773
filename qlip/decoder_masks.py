"""Attention masks of a decoder whose keys have a bias: causal, with padding, sliding windows and caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlip.attention import in_window

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names of the kinds of layers that attend to all keys, and to a window."""

ALIBI_MODELS = ("mpt", "llava_mpt")
"""Language models whose attention (ALiBi) counts tokens and reads any nonzero mask value as True (hidden)."""


def counts_tokens(config: Any) -> bool:
    """Whether a language model's attention (ALiBi) counts tokens, so that it takes no positions; Falcon's may."""
    return getattr(config, "model_type", None) in ALIBI_MODELS or getattr(config, "alibi", False) is True


def layer_windows(config: Any) -> dict[str, int | None]:
    """Finds how many keys, itself included, a token attends to in each kind of a decoder's layers; None for all.

    Args:
        config: of the language model; `sliding_window` and, if its layers differ, `layer_types` are read.

    Returns:
        Kind of layer -> window; one entry named "" where all layers are alike.

    Raises:
        ValueError: a kind is neither full nor sliding attention.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not kinds:
        return {"": window}
    if others := sorted(set(kinds) - {FULL, SLIDING}):
        raise ValueError(
            f"the language model {config.model_type!r} has layers of {', '.join(others)}, which take no mask with a"
            f" bias on keys; allowed are {FULL} and {SLIDING}; give llm_size_bias=0 and llm_weight='each'"
        )
    return {kind: window if kind == SLIDING else None for kind in kinds}


def window_of(config: Any, layer: int) -> int | None:
    """Finds the window of one layer, counted from 0; None if it attends to all keys.

    Raises:
        ValueError: its attention is neither full nor sliding, so a question's attention can't be read from it.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not kinds:
        return window
    if kinds[layer] not in (FULL, SLIDING):
        raise ValueError(
            f"layer {layer} of the language model {config.model_type!r}, whose attention to the image decides what is"
            f" split, is of {kinds[layer]}; allowed are {FULL} and {SLIDING}; set budget to 'score'"
        )
    return window if kinds[layer] == SLIDING else None


def check_takes_bias(language_model: nn.Module, config: Any) -> None:
    """Raises ValueError if a language model has layers that can't take a bias on keys, such as convolutions.

    Args:
        language_model: transformers', without its head.
        config: its configuration.
    """
    layer_windows(config)
    # Mamba, gated delta nets and short convolutions all use Conv1d; their configurations have no common field for it.
    if any(isinstance(module, nn.Conv1d) for module in language_model.modules()):
        raise ValueError(
            f"the language model {config.model_type!r} has layers that mix tokens by convolutions, which take no mask"
            " with a bias on keys; give llm_size_bias=0 and llm_weight='each'"
        )


def decoder_mask(
    attention_mask: Tensor | Mapping[str, Tensor | None] | None,
    position_ids: Tensor | None,
    bias: Tensor | None,
    new: Tensor,
    cache: Cache | None,
    model: Any,
) -> Any:
    """Builds the attention mask that positions with gaps and a bias on keys need; else returns the given one.

    Args:
        attention_mask: (B, past + Q), nonzero on real keys; or (B, 1, Q, K) over all keys of a static cache, true or 0
            where a query may attend, or such a mask for each kind of layer; or None: all keys are real.
        position_ids: of the new tokens; floating point where an image's are fractional.
        bias: float (B, K0), of the first K0 keys.
        new: (B, Q, ...), the new tokens' ids or embeddings.
        cache: of the keys before them.
        model: of transformers; its dtype and its language model's windows are read.

    Returns:
        A mask as given; with a bias (B, 1, Q, K), additive, or one for each kind of layer where windows differ.

    Raises:
        ValueError: the language model can apply neither a bias nor fractional positions, and there are some.
    """
    queries = new.shape[1]
    fractional = position_ids is not None and position_ids.is_floating_point()
    text = model.config.get_text_config()
    if (bias is not None or fractional) and counts_tokens(text):
        raise ValueError(
            f"image tokens have weights or fractional positions, which the attention of {text.model_type!r} can't"
            " apply; give llm_positions='sequential', llm_size_bias=0 and llm_weight='each'"
        )
    if attention_mask is None and (bias is not None or fractional):
        # Without a mask, transformers takes gaps between positions for the borders of packed sequences.
        attention_mask = all_real(new, cache)
    if bias is None or attention_mask is None:
        return attention_mask
    dtype = model.get_input_embeddings().weight.dtype
    masks: dict[str, Tensor] = {}
    for kind, window in layer_windows(text).items():
        given = attention_mask.get(kind) if isinstance(attention_mask, Mapping) else attention_mask
        if given is None:  # transformers leaves out a mask that is causal and nothing else
            given = all_real(new, cache)
        keys, offset = _key_range(text, kind, queries, cache)
        if given.ndim == 4:
            allowed = given if given.dtype == torch.bool else given == 0
            masks[kind] = mask_with_bias(allowed, bias, dtype, offset)
        else:
            masks[kind] = causal_mask_with_bias(given, bias, queries, dtype, keys, window, offset)
    return masks if isinstance(attention_mask, Mapping) else unwrap_single(masks)


def all_real(new: Tensor, cache: Cache | None) -> Tensor:
    """Builds the mask of prompts without padding: ones, int64 (B, past + Q), for tokens (B, Q, ...) and a cache."""
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.ones(new.shape[0], past + new.shape[1], dtype=torch.int64, device=new.device)


def unwrap_single(masks: dict[str, Any]) -> Any:
    """Unwraps a dict of one mask; keeps a dict with one mask per kind of layer."""
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _key_range(config: Any, kind: str, queries: int, cache: Cache | None) -> tuple[int | None, int]:
    """Finds how many keys a kind of layer has, and how many older ones its cache has dropped."""
    if cache is None:
        return None, 0
    return cache.get_mask_sizes(queries, config.layer_types.index(kind) if kind else 0)


def causal_mask_with_bias(
    attention_mask: Tensor,
    key_bias: Tensor,
    queries: int,
    dtype: torch.dtype,
    keys: int | None = None,
    window: int | None = None,
    offset: int = 0,
) -> Tensor:
    """Builds the additive attention mask of a causal model with a bias on keys.

    Args:
        attention_mask: (B, T), nonzero on real keys; T counts all keys so far and the new ones.
        key_bias: float (B, K0), K0 <= T; later keys have none.
        queries: Q, number of new tokens, the last Q of the T keys.
        dtype: of the model.
        keys: K, number of keys in the cache; by default T - `offset`.
        window: how many keys a query attends to at most, itself included; None for all.
        offset: how many of the first keys a cache has dropped.

    Returns:
        (B, 1, Q, K): the bias where a query may attend, the lowest number elsewhere.
    """
    seen = attention_mask.shape[1]
    end = seen if keys is None else offset + keys
    real = F.pad(attention_mask.bool(), (0, max(0, end - seen)))[:, offset:end]
    key = torch.arange(offset, end, device=real.device)
    near = in_window(torch.arange(seen - queries, seen, device=real.device)[:, None] - key, window)  # (Q, K)
    return mask_with_bias((near & real[:, None, :])[:, None], key_bias, dtype, offset)


def mask_with_bias(allowed: Tensor, key_bias: Tensor, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """Fills (B, 1, Q, K) with the bias of its keys where `allowed`, the lowest number elsewhere.

    Args:
        allowed: bool (B, 1, Q, K).
        key_bias: float (B, K0), of the first K0 keys of all; later ones have none.
        dtype: of the result.
        offset: how many keys come before the first of the K.
    """
    end = offset + allowed.shape[-1]
    bias = F.pad(key_bias, (0, max(0, end - key_bias.shape[1])))[:, None, None, offset:end].expand_as(allowed)
    # "eager" computes the softmax in float32, where float64's lowest number is -inf and gives NaN in rows of padding.
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    return bias.to(dtype).masked_fill(~allowed, lowest)
