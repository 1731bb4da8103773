"""Attention weights of one layer of a language model, from its own queries and keys, whatever its attention function.

The model runs up to the layer and no further. The layer computes its own queries and keys, so
quantisation, LoRA, rotary embeddings and norms are respected, and "sdpa", which returns no weights, works as well.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn

MAX_WEIGHTS = 2**24
"""Attention weights computed at a time, 64 MiB in float32; larger sums are computed in pieces."""

_STANCE = Lock()
"""Guards torch.compiler.set_stance, which is process-wide; the holder restores the previous stance."""


PROBE = "qlip_probe"
"""Name of `_stop_with_inputs` among transformers' attention functions."""


@dataclass(frozen=True)
class AttentionInputs:
    """What a layer passes to its attention function."""

    query: Tensor
    """(B, H, T, head width), rotated."""
    key: Tensor
    """(B, H or a divisor of it, T, head width), rotated."""
    scaling: float | None
    """Factor of the products; None for 1 / sqrt(head width)."""
    softcap: float | None
    """c: a logit becomes c tanh(logit / c), as in Gemma 2; None leaves logits as they are."""
    sinks: Tensor | None
    """(H,), a logit that takes a part of each query's attention, as in gpt-oss; None if there are no sinks."""


class _LayerReached(Exception):
    """Ends a forward pass once the wanted layer's inputs are known."""

    def __init__(self, inputs: AttentionInputs) -> None:
        super().__init__()
        self.inputs = inputs


def _stop_with_inputs(
    module: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    **more: Any,
) -> None:
    """Replaces an attention function; the signature is transformers'."""
    sinks, of_heads = more.get("s_aux"), isinstance(attention_mask, Tensor) and attention_mask.shape[1] > 1
    if of_heads or (sinks is not None and sinks.is_meta):
        what = "its heads have masks of their own" if of_heads else "its sinks are offloaded"
        raise ValueError(f"the attention of {type(module).__name__} can't be read: {what}; set budget to 'score'")
    raise _LayerReached(AttentionInputs(query, key, scaling, more.get("softcap"), sinks))


class _ProbingConfig:
    """A layer's configuration with another attention function."""

    _attn_implementation = PROBE

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _run_probing(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Runs an attention layer up to its attention function; returns only if it never calls one of transformers'.

    Runs a copy that shares the weights, so that other threads' forward passes are unaffected.

    Raises:
        _LayerReached: with what the function would get.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PROBE, _stop_with_inputs)
    attention = getattr(attention, "_orig_mod", attention)  # of torch.compile
    probing = copy(attention)
    probing.config = _ProbingConfig(attention.config)  # type: ignore[assignment]
    type(attention).forward(probing, *args, **kwargs)


def middle_layer(decoder: nn.Module) -> int:
    """Finds the layer in the middle of a decoder, counted from 0."""
    return len(find_layers(decoder)) // 2


def find_layers(decoder: nn.Module) -> Any:
    """Finds the layers of a decoder that names them as Llama and most others do.

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
        layer: index of the layer, from 0.
        run: calls the model on a batch of prompts without a cache.
        queries: bool (B, T): the tokens that attend; at least one in each row.
        real: bool (B, T), False on padding.
        key_bias: float (B, T), added to the logits of each key, as the model does.
        window: how many keys a token attends to at most, itself included; None for all before it.

    Returns:
        float32 (B, T), rows sum to 1; to less where the layer has sinks.

    Raises:
        ValueError: there is no such layer, its attention is not one of transformers' interface or has masks by head,
            or a row has no query.
    """
    layers = find_layers(decoder)
    if not 0 <= layer < len(layers):
        raise ValueError(f"the layer is {layer}; a language model of {len(layers)} layers has 0 to {len(layers) - 1}")
    if not bool(queries.any(1).all()):
        raise ValueError(f"prompt {queries.any(1).tolist().index(False)} has no token whose attention could be read")
    attention = getattr(layers[layer], "self_attn", None)
    if not hasattr(attention, "config"):
        raise ValueError(
            f"layer {layer} of {type(decoder).__name__} has no `self_attn` of transformers, whose attention is read;"
            " set budget to 'score'"
        )
    thread = get_ident()

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() == thread:  # not another thread's forward pass through the same model
            _run_probing(module, args, kwargs)

    handle = attention.register_forward_pre_hook(catch, with_kwargs=True)  # type: ignore[union-attr]
    inputs = None
    try:
        with _STANCE, torch.compiler.set_stance("force_eager"):  # compiled code calls no hook
            run()
    except _LayerReached as reached:
        inputs = reached.inputs
    finally:
        handle.remove()
    if inputs is None:
        raise ValueError(
            f"the attention of layer {layer} of {type(decoder).__name__} can't be read, since it did not run by one of"
            " transformers' attention functions; set budget to 'score'"
        )
    return _mean_weights(inputs, queries, real, key_bias, window)  # outside, where the pass's tensors are freed


def _mean_weights(
    inputs: AttentionInputs, queries: Tensor, real: Tensor, key_bias: Tensor | None, window: int | None
) -> Tensor:
    """Computes the layer's weights row by row, for the queries alone: (Q, T) instead of (T, T) logits a head.

    A long question's queries are taken in pieces, so that memory does not grow with their number.
    """
    device, (_, heads, length, width) = inputs.query.device, inputs.query.shape
    token, scaling = torch.arange(length, device=device), inputs.scaling or width**-0.5
    means = []
    for row, chosen in enumerate(queries.to(device)):
        own = chosen.nonzero()[:, 0]
        key = inputs.key[row].repeat_interleave(heads // inputs.key.shape[1], 0).float()
        total = torch.zeros(length, dtype=torch.float32, device=device)
        for some in own.split(max(1, MAX_WEIGHTS // (heads * length))):
            # In float32: where biases are large, as Qwen2's, products exceed half precision before they are scaled.
            logits = inputs.query[row, :, some].float() @ key.transpose(1, 2) * scaling  # (heads, Q, T)
            if inputs.softcap is not None:
                logits = inputs.softcap * (logits / inputs.softcap).tanh()
            if key_bias is not None:
                logits = logits + key_bias[row].to(logits)
            allowed = in_window(some[:, None] - token, window) & real[row].to(device)
            logits = logits.masked_fill(~allowed, -torch.inf)
            if inputs.sinks is not None:
                sinks = inputs.sinks.to(logits)[:, None, None].expand(-1, len(some), 1)
                logits = torch.cat([logits, sinks], -1)
            total += logits.softmax(-1)[..., :length].sum((0, 1))
        means.append(total / (heads * len(own)))
    return torch.stack(means)


def check_followed(queries: Tensor, end: int, prompt: int) -> None:
    """Checks that some token of a question attends to all images of its prompt: in a causal model one after them.

    Args:
        queries: bool (T,): the question's tokens.
        end: index of the first token after the last image.
        prompt: the prompt's number, for the message.

    Raises:
        ValueError: no token of the question comes after the last image.
    """
    if not bool(queries[end:].any()):
        raise ValueError(
            f"no token of the question follows the last image of prompt {prompt}, so none attends to it; put the"
            " question after the images, or set budget to 'score'"
        )


def in_window(distance: Tensor, window: int | None) -> Tensor:
    """Finds where a causal model attends: bool, shaped like `distance`, a query's index minus a key's.

    Args:
        distance: of any shape.
        window: how many keys a query attends to at most, itself included; None for all before it.
    """
    near = distance >= 0
    return near if window is None else near & (distance < window)
