"""Attention weights of one layer against transformers' own, which eager attention returns for all layers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from qlip.attention import attention_on_keys, middle_layer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral with a window": MistralConfig(**SIZES, sliding_window=4),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
}
CONFIGS |= {
    name: AutoConfig.for_model(name, **SIZES, pad_token_id=0, **options)
    for name, options in (
        ("cohere", {}),  # interleaved rotation
        ("olmo2", {}),  # norms over all heads
        ("glm", {"head_dim": 8}),  # partial rotation
        ("afmoe", {"head_dim": 8, "num_local_experts": 2, "num_dense_layers": 3}),  # its mask comes by keyword
        ("phi3", {}),  # one projection for queries, keys and values
        ("smollm3", {"no_rope_layers": [1, 0, 1]}),  # a layer without rotation
        ("gemma2", {"head_dim": 8, "attn_logit_softcapping": 2.0, "sliding_window": 4096}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4096}),  # sinks
    )
}
EAGER_ONLY = ("gemma2", "gpt_oss")
LENGTHS = (9, 6)


def build(config, attention: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Two prompts, the shorter one padded on the left."""
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(9) >= 9 - length for length in LENGTHS]).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def found(model, inputs, layer: int, queries: torch.Tensor, **options) -> torch.Tensor:
    def run():
        model(**inputs, use_cache=False)

    return attention_on_keys(model.model, layer, run, queries, inputs["attention_mask"].bool(), **options)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_equals_what_eager_attention_returns(config, attention):
    inputs = batch()
    queries = torch.zeros(2, 9, dtype=torch.bool)
    queries[:, -3:] = True
    expected = build(config, "eager")(**inputs, output_attentions=True).attentions
    model = build(config, "eager" if config.model_type in EAGER_ONLY else attention)
    window = getattr(config, "sliding_window", None)
    for layer in range(3):
        got = found(model, inputs, layer, queries, window=window)
        torch.testing.assert_close(got, expected[layer][:, :, -3:].mean((1, 2)), atol=1e-5, rtol=1e-4)
        if config.model_type != "gpt_oss":  # whose sinks take the rest
            torch.testing.assert_close(got.sum(1), torch.ones(2))


@torch.no_grad()
def test_products_beyond_half_precision_are_still_weights():
    """Biases of queries and keys as large as Qwen2's: the model's own attention scales before it exceeds 65504."""
    model, inputs = build(CONFIGS["qwen2"], "sdpa"), batch()
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.bias.fill_(150.0)
    queries = torch.zeros(2, 9, dtype=torch.bool)
    queries[:, -3:] = True
    got = found(model.half(), inputs, 1, queries)
    assert got.isfinite().all()
    torch.testing.assert_close(got.sum(1), torch.ones(2), atol=1e-3, rtol=0)


class LargestWeights(TorchFunctionMode):
    """Notes how many elements softmax gives at a time."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") == "softmax":
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("most", [1, 40, 80, 10**6])
@torch.no_grad()
def test_a_long_question_is_taken_in_pieces_of_bounded_size(most, monkeypatch):
    monkeypatch.setattr("qlip.attention.MAX_WEIGHTS", most)
    inputs, queries = batch(), batch()["attention_mask"].bool()
    queries[:, :4] = False
    expected = build(CONFIGS["mistral with a window"], "eager")(**inputs, output_attentions=True).attentions[1]
    with LargestWeights() as noted:
        got = found(build(CONFIGS["mistral with a window"], "sdpa"), inputs, 1, queries, window=4)
    torch.testing.assert_close(got, expected[:, :, 4:].mean((1, 2)), atol=1e-5, rtol=1e-4)
    assert max(noted.sizes) <= max(most, 4 * 9)  # one query of four heads and nine keys at least


@torch.no_grad()
def test_a_bias_on_keys_is_added_to_their_logits():
    one_head = LlamaConfig(**{**SIZES, "num_attention_heads": 1, "num_key_value_heads": 1})
    model, inputs = build(one_head, "sdpa"), batch()
    queries = torch.zeros(2, 9, dtype=torch.bool)
    queries[:, -1] = True
    plain = found(model, inputs, 0, queries)
    bias = torch.linspace(-1, 1, 18).view(2, 9)
    expected = plain * bias.exp()
    got = found(model, inputs, 0, queries, key_bias=bias)
    torch.testing.assert_close(got, expected / expected.sum(1, keepdim=True))


@torch.no_grad()
def test_the_layers_above_do_not_run_and_the_model_is_left_as_it_was():
    model, inputs = build(CONFIGS["llama"], "sdpa"), batch()
    queries = inputs["attention_mask"].bool()
    before, ran = model(**inputs).logits, []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    found(model, inputs, 1, queries)
    assert ran == [0]
    torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)
    assert middle_layer(model.model) == 1


class Averaging(torch.nn.Module):
    """An attention that calls none of transformers' functions."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, hidden_states, **_):
        return hidden_states.mean(1, keepdim=True).expand_as(hidden_states), None


def test_what_cannot_be_read_is_refused():
    model, inputs = build(CONFIGS["llama"], "sdpa"), batch()
    queries = inputs["attention_mask"].bool()
    with pytest.raises(ValueError, match="the layer is 3; a language model of 3 layers has 0 to 2"):
        found(model, inputs, 3, queries)
    with pytest.raises(ValueError, match="prompt 0 has no token whose attention could be read"):
        found(model, inputs, 1, torch.zeros_like(queries))
    fused = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50))
    with pytest.raises(ValueError, match="GPT2Model has no `layers`, .*budget to 'score'"):
        middle_layer(fused.transformer)
    fused.transformer.layers = fused.transformer.h
    with pytest.raises(ValueError, match="layer 0 of GPT2Model has no `self_attn` of .*budget to 'score'"):
        attention_on_keys(fused.transformer, 0, lambda: None, queries, queries)
    model.model.layers[1].self_attn = Averaging(model.config)
    with pytest.raises(ValueError, match="attention of layer 1 of LlamaModel can't be read, .* functions; set budget"):
        found(model, inputs, 1, queries)


@torch.no_grad()
def test_a_forward_pass_of_another_thread_is_not_disturbed():
    model, inputs = build(CONFIGS["llama"], "sdpa"), batch()
    queries = inputs["attention_mask"].bool()
    expected, alone = model(**inputs).logits, found(model, inputs, 1, queries)
    others: list[torch.Tensor] = []

    def run():
        with ThreadPoolExecutor(1) as pool:
            others.append(pool.submit(lambda: model(**inputs).logits.detach()).result())
        model(**inputs, use_cache=False)

    got = attention_on_keys(model.model, 1, run, queries, queries)
    torch.testing.assert_close(got, alone)
    torch.testing.assert_close(others[0], expected)


@torch.no_grad()
def test_heads_with_masks_of_their_own_are_refused():
    config = AutoConfig.for_model("doge", **SIZES, pad_token_id=0)
    model, inputs = build(config, "eager"), batch()
    with pytest.raises(ValueError, match="DogeAttention can't be read: its heads have masks of their own; set budget"):
        found(model, inputs, 0, inputs["attention_mask"].bool())


@torch.no_grad()
def test_a_compiled_model_is_read_as_before():
    model, inputs = build(CONFIGS["llama"], "sdpa"), batch()
    queries = torch.zeros(2, 9, dtype=torch.bool)
    queries[:, -2:] = True
    expected = found(model, inputs, 1, queries)
    layer = model.model.layers[1]
    layer.self_attn = torch.compile(layer.self_attn, backend="eager")
    torch.testing.assert_close(found(model, inputs, 1, queries), expected)
    layer.self_attn = layer.self_attn._orig_mod
    model.compile(backend="eager")
    logits = model(**inputs).logits  # the compiler keeps the code that it made before there was a hook
    torch.testing.assert_close(found(model, inputs, 1, queries), expected)
    torch.testing.assert_close(model(**inputs).logits, logits)
