"""The masks of a decoder whose image tokens have a bias, against sums over keys that are written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.cache_utils import DynamicCache

from qlip.decoder_masks import causal_mask_with_bias, decoder_mask, layer_windows, window_of

EMBEDDINGS = torch.nn.Embedding(1, 1)


def model_of(config) -> SimpleNamespace:
    """What is read of a model in float32."""
    return SimpleNamespace(config=config, get_input_embeddings=lambda: EMBEDDINGS)


MODEL = model_of(LlamaConfig())
LOWEST = torch.finfo(torch.float32).min
MIXED = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2, "num_hidden_layers": 4}


def test_positions_with_gaps_always_get_a_mask():
    """transformers would take the gaps for the borders of packed sequences."""
    new = torch.zeros(2, 3, dtype=torch.int64)
    assert decoder_mask(None, torch.arange(3)[None], None, new, None, MODEL) is None
    assert torch.equal(decoder_mask(None, torch.arange(3.0)[None], None, new, None, MODEL), torch.ones(2, 3))


def test_a_mask_over_a_static_cache_is_the_plain_one_with_room():
    attention_mask, bias = torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0.0, 0.0, 2.0]])
    plain = causal_mask_with_bias(attention_mask, bias, 2, torch.float32)
    roomy = causal_mask_with_bias(attention_mask, bias, 2, torch.float32, keys=8)
    assert torch.equal(roomy[..., :5], plain)
    assert (roomy[..., 5:] == torch.finfo(torch.float32).min).all()
    allowed = plain > torch.finfo(torch.float32).min
    new = torch.zeros(1, 2, dtype=torch.int64)
    for given in (allowed, torch.zeros(1, 1, 2, 5).masked_fill(~allowed, -1e9)):
        assert torch.equal(decoder_mask(given, None, bias, new, None, MODEL), plain)


def test_mask_with_bias_equals_softmax_over_weighted_keys():
    attention_mask = torch.tensor([[0, 1, 1, 1, 1]])
    bias = torch.tensor([[0.0, 0.0, 2.0]])  # the last two keys are new and have none
    mask = causal_mask_with_bias(attention_mask, bias, 2, torch.float32)
    assert mask.shape == (1, 1, 2, 5)
    weights = mask.softmax(-1)[0, 0]
    e2 = torch.tensor(2.0).exp()
    expected = torch.stack([torch.stack([0 * e2, 1 + 0 * e2, e2, 1 + 0 * e2, 0 * e2]), torch.tensor([0, 1, e2, 1, 1])])
    torch.testing.assert_close(weights, expected / expected.sum(1, keepdim=True))


def naive(row: list[int], bias: list[float], queries: int, window: int | None, dropped: int = 0) -> torch.Tensor:
    """One row's mask (Q, K) by the definition, key by key."""
    mask = torch.full((queries, len(row) - dropped), LOWEST)
    for query in range(queries):
        place = len(row) - queries + query
        for key in range(dropped, place + 1):
            if row[key] and (window is None or place - key < window):
                mask[query, key - dropped] = bias[key] if key < len(bias) else 0.0
    return mask


@pytest.mark.parametrize("window", [None, 1, 3, 40])
@pytest.mark.parametrize("queries", [1, 2, 6])
def test_a_window_is_a_band_under_padding_and_bias(window, queries):
    rows, bias = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], [[0.0, 0.0, 0.5, -1.0], [0.1, 0.2, 0.3, 0.4]]
    got = causal_mask_with_bias(torch.tensor(rows), torch.tensor(bias), queries, torch.float32, window=window)
    for row in range(2):
        assert torch.equal(got[row, 0], naive(rows[row], bias[row], queries, window))


@pytest.mark.parametrize("past", [1, 2, 5])
def test_a_cache_that_drops_old_keys_gets_the_mask_of_those_that_it_keeps(past):
    config = MistralConfig(num_hidden_layers=1, sliding_window=3)
    cache = DynamicCache(config=config)
    cache.update(torch.zeros(1, 1, past, 4), torch.zeros(1, 1, past, 4), 0)
    row, bias = [1] * (past + 2), [0.5] * past
    model = model_of(config)
    new = torch.zeros(1, 2, dtype=torch.int64)
    got = decoder_mask(torch.tensor([row]), None, torch.tensor([bias]), new, cache, model)
    keys = cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)[0].shape[2]
    assert got.shape == (1, 1, 2, keys)
    assert torch.equal(got[0, 0], naive(row, bias, 2, 3, dropped=past + 2 - keys))


def test_layers_of_two_kinds_get_a_mask_each():
    config = Qwen2Config(**MIXED)
    model = model_of(config)
    row, bias = torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0.0, 0.5, 0.5]])
    masks = decoder_mask(row, None, bias, torch.zeros(1, 5, dtype=torch.int64), None, model)
    assert set(masks) == {"full_attention", "sliding_attention"}
    for kind, window in {"full_attention": None, "sliding_attention": 3}.items():
        assert torch.equal(masks[kind][0, 0], naive(row[0].tolist(), bias[0].tolist(), 5, window))


def test_the_window_of_a_layer_is_its_configurations():
    assert [window_of(Qwen2Config(**MIXED), layer) for layer in range(4)] == [None, None, 3, 3]
    assert window_of(MistralConfig(sliding_window=7), 1) == 7
    assert layer_windows(Qwen2Config(use_sliding_window=False)) == {"full_attention": None}
    assert layer_windows(LlamaConfig()) == {"": None}
