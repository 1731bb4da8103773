"""Turns by hand in LLaVA's own classes: from a cache, in padded batches, and from embeddings, as each alone."""

from __future__ import annotations

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.model.prompts import IMAGES, ROWS, images_of
from tests.llava.model.test_generate import GREEDY, SETTINGS, pad

FIRST = [ROWS[0], ROWS[2], ROWS[3]]
"""With an image, without one, and with another one."""
NEXT = [[70, 71, 72], [73, 74, 75], [76, 77, 78]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


FEW = ["clip", "biased"]
"""The towers of what no position decides."""


@pytest.fixture(scope="module", params=["clip", "defaults", "sequential", "biased", "native weight", "thumbnail"])
def model(request, folder):
    qlip = {} if request.param == "clip" else {"qlip": SETTINGS[request.param]}
    return load_pretrained_model(str(folder), device="cpu", **qlip)[1]


@pytest.fixture(params=["left", "right"])
def side(request, model, monkeypatch):
    monkeypatch.setattr(model.config, "tokenizer_padding_side", request.param)
    return request.param


def pictures(model, rows):
    """The rows' images; CLIP's tower takes one size."""
    chosen = [image for share in images_of(rows) for image in share]
    if model.get_vision_tower().image_processor.__class__.__name__.startswith("CLIP"):
        return [torch.nn.functional.interpolate(image[None], (112, 112))[0] for image in chosen] or None
    return chosen or None


@torch.no_grad()
def alone(model, row, later, images):
    """Logits of the last token of a conversation without cache and padding."""
    return model(torch.tensor([row + later]), images=images).logits[0, -1]


@torch.no_grad()
def test_a_turn_by_hand_continues_as_each_conversation_alone(model, side):
    ids, real = pad(FIRST, side)
    images = pictures(model, FIRST)
    output = model(ids, attention_mask=real, images=images, use_cache=True)
    mask = model.splice_images(ids, real, None, images, side).attention_mask
    cache, said = output.past_key_values, [[], [], []]
    for step in range(3):  # token by token, as LLaVA's loop by hand
        new = torch.tensor(NEXT)[:, step : step + 1]
        mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
        logits = model(new, attention_mask=mask, past_key_values=cache).logits[:, -1]
        said = [own + [later[step]] for own, later in zip(said, NEXT, strict=True)]
    own = iter(images)
    shares = [[next(own)], None, [next(own)]]
    expected = torch.stack([alone(model, *parts) for parts in zip(FIRST, said, shares, strict=True)])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("model", FEW, indirect=True)
@torch.no_grad()
def test_padding_that_generate_would_move_is_refused_beside_a_cache(model):
    ids, real = torch.tensor([[1, 70, 71, 72], [0, 0, 1, 80]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    first = model.generate(ids, attention_mask=real, return_dict_in_generate=True, **GREEDY)
    begun = torch.cat([ids, first.sequences], 1), torch.cat([real, torch.ones_like(first.sequences)], 1)
    for padding, is_refused in (([[1, 1, 1], [0, 0, 1]], True), ([[1, 1, 1], [1, 1, 1]], False)):
        later = torch.tensor([[40, 41, 42], [43, 44, 45]]) * torch.tensor(padding)
        given = {"attention_mask": torch.cat([begun[1], torch.tensor(padding)], 1)}
        whole = torch.cat([begun[0], later], 1)
        expected = model.generate(whole, **given, **GREEDY)
        if is_refused:
            with pytest.raises(ValueError, match="hides tokens behind the first of a row"):
                model.generate(whole, **given, past_key_values=first.past_key_values, **GREEDY)
        else:
            found = model.generate(whole, **given, past_key_values=first.past_key_values, **GREEDY)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("model", FEW, indirect=True)
@torch.no_grad()
def test_a_penalty_on_repetition_does_not_depend_on_the_batch(model):
    rows = [ROWS[2], ROWS[0]]
    ids, real = pad(rows, "right")
    options = {**GREEDY, "max_new_tokens": 12, "repetition_penalty": 1.3}
    expected = model.generate(torch.tensor([rows[0]]), **options)
    found = model.generate(ids, attention_mask=real, images=pictures(model, rows), **options)
    assert torch.equal(found[:1], expected)


def test_llavas_six_values_warn_where_they_lose_weights(folder, caplog):
    prompt = torch.tensor([ROWS[0]])
    for bias, is_told in ((0.0, False), (1.0, True)):
        model = load_pretrained_model(str(folder), device="cpu", qlip={**SETTINGS["biased"], "llm_size_bias": bias})[1]
        caplog.clear()
        _, positions, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
            prompt, None, None, None, None, IMAGES[:1]
        )
        assert ("cannot return the weights of leaves" in caplog.text) == is_told
        with torch.no_grad():
            logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
            whole = model(prompt, images=IMAGES[:1]).logits
        assert torch.allclose(logits, whole, atol=1e-5) != is_told
