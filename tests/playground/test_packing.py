"""Packed conversations: the decoder says for each what it says for that conversation alone."""

from __future__ import annotations

import numpy as np
import torch

from playground.packing import PADDING, Packer, answer_logits, answers_right, segment_mask
from playground.questions import KINDS, scene_questions
from playground.vocabulary import prompt

SPAN = 64


def test_each_packed_conversation_equals_the_conversation_alone(model, tokenizer, scenes):
    packer, rng = Packer(tokenizer), np.random.default_rng(0)
    rows = [scene_questions(objects, 112, rng, KINDS) for objects in scenes.batch(2, rng).objects]
    packed = packer.pack(rows)
    image = torch.randn(2, SPAN, 128)
    places = torch.arange(SPAN)
    with torch.no_grad():
        together, targets = answer_logits(model.decoder, packer.head, image, places, SPAN, packed)
        alone, wanted = [], []
        for row, tokens in zip(rows, image, strict=True):
            for item in row:
                before, after = prompt(item.text)
                head = tokenizer(before).input_ids
                asked = tokenizer(after).input_ids[1:]
                whole = tokenizer(f"{after} {item.answer}</s>").input_ids[1:]
                assert whole[: len(asked)] == asked
                embed = model.decoder.get_input_embeddings()
                inputs = torch.cat([embed(torch.tensor(head)), tokens, embed(torch.tensor(whole))])[None]
                logits = model.decoder(inputs_embeds=inputs).logits[0]
                answer = whole[len(asked) :]
                alone.append(logits[-len(answer) - 1 : -1])
                wanted += answer
    assert targets.tolist() == wanted
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_a_segment_sees_the_prefix_and_its_own_past():
    segments = torch.tensor([[0, 0, 1, PADDING]])
    seen = segment_mask(1, 2, segments)[0, 0] == 0
    assert seen.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 1],
    ]


def test_an_answer_is_right_if_all_its_tokens_are(tokenizer, scenes):
    rng = np.random.default_rng(1)
    rows = [scene_questions(objects, 112, rng, ["count", "listing"]) for objects in scenes.batch(2, rng).objects]
    packed = Packer(tokenizer).pack(rows)
    targets = packed.targets[packed.targets >= 0]
    logits = torch.nn.functional.one_hot(targets, len(tokenizer)).float()
    right, kinds = answers_right(logits, targets, packed)
    assert right.tolist() == [1, 1, 1, 1]
    assert [KINDS[kind] for kind in kinds] == ["count", "listing"] * 2
    logits[-1] = 0  # the last </s> of the last listing
    assert answers_right(logits, targets, packed)[0].tolist() == [1, 1, 1, 0]
