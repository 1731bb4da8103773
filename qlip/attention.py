"""Attention weights of one layer of a language model, from that layer's inputs, whatever its attention function.

The model runs up to the layer and no further; its weights come from the query and key projections themselves, so that a
quantised model, LoRA and "sdpa", which returns none, work as "eager" does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn

MAX_WEIGHTS = 2**24
"""Attention weights that are computed at a time, 64 MiB in float32; those of more are summed in pieces."""

_STANCE = Lock()
"""Guards torch.compiler.set_stance, which is process-wide; the holder restores the previous stance."""


class _LayerReached(Exception):
    """Ends a forward pass once the wanted layer's inputs are known."""


def middle_layer(decoder: nn.Module) -> int:
    """Finds the layer in the middle of a decoder, counted from 0."""
    return len(find_layers(decoder)) // 2


def find_layers(decoder: nn.Module) -> Any:
    """Finds the layers of a decoder, Llama's and those of most others.

    Raises:
        ValueError: they have another name.
    """
    if not isinstance(layers := getattr(decoder, "layers", None), nn.ModuleList):
        raise ValueError(f"{type(decoder).__name__} has no `layers`, whose attention is read; set budget to 'score'")
    return layers


@torch.no_grad()
def attention_on_keys(
    decoder: nn.Module,
    layer: int,
    run: Callable[[], object],
    queries: Tensor,
    real: Tensor,
    key_bias: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Computes how much some tokens attend to every token, the mean over these tokens and the layer's heads.

    Args:
        decoder: the trunk of a language model of transformers, with `layers` as Llama's.
        layer: which, counted from 0.
        run: calls the model on a batch of prompts without a cache.
        queries: bool (B, T): the tokens that attend; at least one in each row.
        real: bool (B, T), False on padding.
        key_bias: float (B, T), added to the logits of each key, as the model does.
        window: how many keys a token attends to at most, itself included; None for all before it.

    Returns:
        float32 (B, T), rows sum to 1.

    Raises:
        ValueError: there is no such layer, its attention has no separate query and key projections, or a row has no
            query.
    """
    layers = find_layers(decoder)
    if not 0 <= layer < len(layers):
        raise ValueError(f"the layer is {layer}; a language model of {len(layers)} layers has 0 to {len(layers) - 1}")
    if not bool(queries.any(1).all()):
        raise ValueError(f"prompt {queries.any(1).tolist().index(False)} has no token whose attention could be read")
    attention = getattr(layers[layer], "self_attn", None)
    lacking = [name for name in ("q_proj", "k_proj", "head_dim", "scaling") if not hasattr(attention, name)]
    if lacking:
        raise ValueError(
            f"the attention of {type(decoder).__name__} has no {' and no '.join(lacking)}, from which the question's"
            " attention is computed; set budget to 'score'"
        )
    caught: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
    thread = get_ident()

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != thread:  # another thread's forward pass through the same model
            return
        caught.append(
            (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], kwargs["position_embeddings"])
        )
        raise _LayerReached

    handle = attention.register_forward_pre_hook(catch, with_kwargs=True)  # type: ignore[union-attr]
    try:
        with suppress(_LayerReached), _STANCE, torch.compiler.set_stance("force_eager"):  # compiled code calls no hook
            run()
    finally:
        handle.remove()
    if not caught:
        raise ValueError(f"layer {layer} of {type(decoder).__name__} did not run")
    hidden, rotation = caught[0]
    return _mean_weights(attention, hidden, rotation, queries, real, key_bias, window)


def _mean_weights(
    attention: Any,
    hidden: Tensor,
    rotation: tuple[Tensor, Tensor],
    queries: Tensor,
    real: Tensor,
    key_bias: Tensor | None,
    window: int | None,
) -> Tensor:
    """Computes the layer's weights row by row, for the queries alone: (Q, T) instead of (T, T) logits a head.

    A long question's queries are taken in pieces, so that memory does not grow with their number.
    """
    token = torch.arange(hidden.shape[1], device=hidden.device)
    means = []
    for row, chosen in enumerate(queries.to(hidden.device)):
        own = chosen.nonzero()[:, 0]
        turn = tuple(part[row if len(part) > 1 else 0] for part in rotation)
        key = _heads(attention, "k", hidden[row], turn).repeat_interleave(attention.num_key_value_groups, 0).float()
        total = torch.zeros(len(token), device=hidden.device)
        for some in own.split(max(1, MAX_WEIGHTS // (len(key) * len(token)))):
            # In float32: where biases are large, as Qwen2's, products exceed half precision before they are scaled.
            query = _heads(attention, "q", hidden[row, some], tuple(part[some] for part in turn)).float()
            logits = query @ key.transpose(1, 2) * attention.scaling  # (heads, Q, T)
            if key_bias is not None:
                logits = logits + key_bias[row].to(logits)
            allowed = in_window(some[:, None] - token, window) & real[row].to(hidden.device)
            total += logits.masked_fill(~allowed, -torch.inf).softmax(-1).sum((0, 1))
        means.append(total / (len(key) * len(own)))
    return torch.stack(means)


def check_followed(queries: Tensor, end: int, prompt: int) -> None:
    """Checks that a token attends to all images of a prompt: in a causal model one behind them.

    Args:
        queries: bool (T,): the tokens that attend.
        end: where the last image ends.
        prompt: its number, for the message.

    Raises:
        ValueError: none does.
    """
    if not bool(queries[end:].any()):
        raise ValueError(
            f"no token of the question follows the last image of prompt {prompt}, so that none attends to it; put the"
            " question after the images, or set budget to 'score'"
        )


def in_window(distance: Tensor, window: int | None) -> Tensor:
    """Finds where a causal model attends: bool, shaped like `distance`, which is a query's place minus a key's.

    Args:
        distance: of any shape.
        window: how many keys a query attends to at most, itself included; None for all before it.
    """
    near = distance >= 0
    return near if window is None else near & (distance < window)


def _heads(attention: Any, kind: str, hidden: Tensor, rotation: tuple[Tensor, ...]) -> Tensor:
    """Projects tokens (T, D) to rotated queries or keys (heads, T, head width)."""
    states = getattr(attention, f"{kind}_proj")(hidden[None])[0].unflatten(-1, (-1, attention.head_dim))
    if (norm := getattr(attention, f"{kind}_norm", None)) is not None:
        states = norm(states)
    states = states.transpose(0, 1)
    cos, sin = (part.to(states) for part in rotation)
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin
