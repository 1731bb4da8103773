"""A sliding window under a biased image, raster positions and padding: full attention with a band written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.config import TEXT_CONFIGS
from llava.model.loading.weights import MODELS
from llava.model.splice import bias_keys
from llava.model.vision.image_tokens import ImageTokens
from tests.llava.checkpoints import VISION, llava_state
from tests.llava.model.language_models import KINDS, make_oracle

LEAVES = {"criterion": "gradient", "coarsest": "any", "alpha": 0.7, "max_tokens": None, "llm_size_bias": 1.0}
PROMPTS = [[1, 20, IMAGE_TOKEN_INDEX, 30, 31, 32, 33], [1, IMAGE_TOKEN_INDEX, 9]]
PIXELS = torch.zeros(2, 3, 112, 168)
PIXELS[0, :, 20:60, 30:90] = 3 * torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(0))
WINDOWED = {"mistral, window": [40, 40], "qwen2, window": [None, 40]}
"""Kind -> window of each of the two layers."""


def make_model(kind: str, attention: str, **changes: Any) -> Any:
    fields = {**KINDS[kind], **changes}
    config = TEXT_CONFIGS[fields.pop("model_type")](
        **fields,
        mm_vision_config=VISION,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=64,
        qlip=LEAVES,
        attn_implementation=attention,
    )
    model = MODELS[type(config)](config).eval()
    model.load_state_dict(llava_state(make_oracle(kind)))
    return model


def splice(model: Any, side: str) -> tuple[Any, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in PROMPTS], True, 0, side)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(p)) for p in PROMPTS], True, 0, side)
    batch = model.splice_images(ids, mask, None, PIXELS, side)
    bias = bias_keys(batch, model.config)
    assert bias is not None and batch.placed.positions.is_floating_point()
    return batch, bias


def band(real: torch.Tensor, bias: torch.Tensor, window: int | None) -> torch.Tensor:
    """The mask of a layer as the definition has it: (B, 1, T, T)."""
    length = real.shape[1]
    mask = torch.full((len(real), 1, length, length), torch.finfo(torch.float32).min)
    for row in range(len(real)):
        for query in range(length):
            first = 0 if window is None else max(0, query - window + 1)
            for key in range(first, query + 1):
                if real[row, key]:
                    mask[row, 0, query, key] = bias[row, key]
    return mask


@pytest.mark.parametrize(
    ("kind", "side", "attention"),
    [
        ("mistral, window", "left", "sdpa"),
        ("mistral, window", "right", "eager"),
        ("qwen2, window", "left", "eager"),
        ("qwen2, window", "right", "sdpa"),
    ],
)
@torch.no_grad()
def test_logits_are_those_of_full_attention_with_a_band(kind, side, attention):
    model = make_model(kind, attention)
    batch, bias = splice(model, side)
    real = batch.attention_mask.bool()
    assert real.sum(1).max() > 45  # longer than the window
    fields = {
        "inputs_embeds": batch.inputs_embeds,
        "position_ids": batch.placed.positions,
        "attention_mask": batch.attention_mask,
        "key_bias": bias,
    }
    got = model(**fields).logits
    full = make_model(kind, attention, sliding_window=None, use_sliding_window=False)
    for layer, window in zip(full.model.layers, WINDOWED[kind], strict=True):
        mask = band(real, bias, window)
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
    expected = full(**fields).logits
    torch.testing.assert_close(got[real], expected[real], atol=1e-4, rtol=1e-5)
    for layer in full.model.layers:
        layer._forward_pre_hooks.clear()
    assert (got[real] - full(**fields).logits[real]).abs().max() > 1e-3  # the window matters


@pytest.mark.parametrize(("kind", "cache"), [("mistral, window", "static"), ("qwen2, window", None)])
@torch.no_grad()
def test_generation_with_a_cache_gives_the_tokens_of_the_whole_sequence(kind, cache):
    """The cache drops keys that no window reaches; every step is compared with a pass over all tokens."""
    model = make_model(kind, "sdpa")
    batch, bias = splice(model, "left")
    images = [ImageTokens(image.features, image.span) for image in model.encode_tokens(PIXELS)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in PROMPTS], True, 0, "left")
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(p)) for p in PROMPTS], True, 0, "left")
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    options |= {"cache_implementation": cache, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(ids, images=images, attention_mask=mask, **options)
    embeds, positions, real = batch.inputs_embeds, batch.placed.positions, batch.attention_mask
    for step, token in enumerate(out.sequences.T):
        logits = model(inputs_embeds=embeds, position_ids=positions, attention_mask=real, key_bias=bias).logits[:, -1]
        torch.testing.assert_close(out.logits[step], logits, atol=1e-4, rtol=1e-4)
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)[:, None]], 1)
        positions = torch.cat([positions, batch.placed.end[:, None] + step], 1)
        real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
