"""Attention over packed rows: several prompts share a row, and each token attends to its own prompt only.

Pure functions; `llava.model.splice` lays out the rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import is_flash_attention_requested

from qlip.attention import in_window
from qlip.decoder_masks import layer_windows, unwrap_single
from qlip.language_positions import BIASABLE


def read_packs(packs: Tensor, prompts: int, attention: str) -> list[int]:
    """Checks the row numbers of a batch and adapts them to the attention.

    FlashAttention takes no mask, but borders between sequences in one long row, without padding: all prompts then
    share a row.

    Args:
        packs: int64 (B,), the row of each prompt.
        prompts: B.
        attention: transformers' name of the language model's attention.

    Raises:
        ValueError: another number of rows than prompts, or an attention that cannot keep prompts apart.
    """
    if packs.shape != (prompts,) or packs.is_floating_point():
        raise ValueError(
            f"packs is {packs.dtype} {tuple(packs.shape)}; it must be int64 ({prompts},): a row per prompt"
        )
    if is_flash_attention_requested(requested_attention_implementation=attention):
        return [0] * prompts
    if attention not in BIASABLE:
        raise ValueError(
            f"packs needs an attention that keeps the prompts of a row apart, which {attention!r} does not; load the"
            " model with attn_implementation 'sdpa', 'eager' or 'flash_attention_2', or train without --pack"
        )
    return packs.tolist()


def attend_within_prompts(prompts: Tensor, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Builds what keeps the prompts of a row apart.

    Args:
        prompts: int64 (B, T), number of each token's prompt, -1 on padding.
        config: the language model's.
        dtype: of the model.

    Returns:
        The attention mask, and further arguments of the language model. With "sdpa" the mask is bool (B, 1, T, T), with
        "eager" it is additive; where layers differ in their windows, one for each kind of layer. With FlashAttention
        there is none, and the arguments are the borders of the prompts.
    """
    if is_flash_attention_requested(config):
        return None, prompt_borders(prompts)
    masks = {kind: packed_mask(prompts, window) for kind, window in layer_windows(config).items()}
    if config._attn_implementation != "sdpa":
        lowest = torch.finfo(dtype).min
        masks = {kind: torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, lowest) for kind, mask in masks.items()}
    return unwrap_single(masks), {}


def packed_mask(prompts: Tensor, window: int | None = None) -> Tensor:
    """Builds bool (B, 1, T, T): True where a query may attend to a key, one of its prompt's that is not after it.

    Padding attends to padding: a query without any key would give NaN.

    Args:
        prompts: int64 (B, T), number of each token's prompt, -1 on padding.
        window: how many keys a query attends to at most, itself included.
    """
    token = torch.arange(prompts.shape[1], device=prompts.device)
    near = in_window(token[:, None] - token, window)
    return (near & (prompts[:, :, None] == prompts[:, None, :]))[:, None]


def prompt_borders(prompts: Tensor) -> dict[str, Any]:
    """Describes the prompts of one row (1, T) without padding, as transformers passes them to FlashAttention.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`, int32 (prompts + 1,): where each begins, and T; `max_length_q` and
        `max_length_k`: tokens of the longest.
    """
    lengths = prompts[0].unique_consecutive(return_counts=True)[1]
    starts = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
