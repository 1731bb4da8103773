"""The question-aware budget of attached models: what transformers' own attention weights would have chosen."""

from __future__ import annotations

import pytest
import torch

import qlip
from qlip.integrations.question import mark_questions
from qlip.packing import unpack_leaves
from qlip.roots import allowed_leaf
from tests.qlip.integrations.models import (
    GREEDY,
    PICTURES,
    PROMPTS,
    ask,
    attached,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)

SETTINGS = {
    "criterion": "gradient",
    "alpha": 0.5,
    "max_tokens": 60,
    "budget": "question",
    "score_share": 0.2,
    "question_share": 0.6,
}
LAYER = 1  # the middle one of two
TEXT = "USER: <image>\nfirst? ASSISTANT: none. USER: which is it? ASSISTANT:"
NEWEST = "which is it?"


def eager(kind: str):
    return qlip.attach(
        make_language_model(kind, attn_implementation="eager"), make_processor(kind), **{**SETTINGS, "alpha": 1e9}
    )


def relevance(kind: str, image, tail: int | None) -> torch.Tensor:
    """Attention on each token of the unsplit image, of the last `tail` tokens or of all text."""
    model, processor = eager(kind)
    inputs = ask(processor, [TEXT], [image])
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[LAYER][0].mean(0)
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    asks = ~is_image if tail is None else torch.arange(len(is_image)) >= len(is_image) - tail
    found = weights[asks].mean(0)[is_image]
    return found.view(4, 5)[:, :4].flatten() if kind == "llava_next" else found  # newlines close its four rows


def test_an_image_behind_the_question_takes_none_of_its_words():
    """In the text it is one token, in the inputs as many as it has leaves."""
    model, processor = attached("llava", **SETTINGS)
    text = f"USER: <image>\n{NEWEST} <image>\nor here? ASSISTANT:"
    inputs = ask(processor, [text], [[picture(112, 112, 5), picture(112, 112, 6)]])
    asks = mark_questions(processor, inputs, text, NEWEST, model.config.image_token_id)
    marked = processor.tokenizer.decode(inputs["input_ids"][0][asks[0]])
    assert marked.replace(" ", "") == text[text.index(NEWEST) :].replace("<image>", "").replace(" ", "")


@pytest.mark.parametrize(
    ("kind", "question"),
    [("llava", None), ("llava", NEWEST), ("vipllava", NEWEST), ("llava_siglip", None), ("llava_next", NEWEST)],
)
def test_what_the_question_attends_to_is_split(kind, question):
    model, processor = attached(kind, **SETTINGS)
    image = picture(112, 112, 5)
    tail = None if question is None else len(TEXT) - TEXT.rfind(NEWEST)  # a token a byte
    inputs = qlip.process_for_question(model, processor, image, TEXT, question)
    (tree,) = unpack_leaves(inputs["leaf_boxes"], inputs["leaf_grids"])
    expected = relevance(kind, image, tail)
    assert len(expected) == 16
    pixels = processor.image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    options = {
        "criterion": "gradient",
        "native_grid": 4,
        "max_leaf": allowed_leaf(model.attachment.vision.qlip, (8, 8), 4),
    }
    kept = qlip.partition(pixels, alpha=0.5, max_tokens=19, **options)  # the scores' share: a fifth of 16
    fine = qlip.partition(pixels, alpha=0.5, max_tokens=None, **options)
    # A root of 2 x 2 cells splits once, and 9 of 16 tokens are left to the question: three splits.
    root = [leaves.boxes[:, 0] // 2 * 4 + leaves.boxes[:, 1] // 2 for leaves in (kept, fine)]
    gain = root[1].bincount(minlength=16) - root[0].bincount(minlength=16)
    chosen = expected.masked_fill(gain <= 0, -1).topk(3).indices
    wanted = torch.cat([kept.boxes[~torch.isin(root[0], chosen)], fine.boxes[torch.isin(root[1], chosen)]]).tolist()
    assert tree.boxes.tolist() == sorted(wanted)
    answer = model.generate(**inputs, **GREEDY)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + GREEDY["max_new_tokens"]


def test_a_prompt_in_a_batch_is_prepared_as_alone():
    model, processor = attached("llava", **SETTINGS)
    prompts = [*PROMPTS[:3], "see <image> there"]
    together = qlip.process_for_question(model, processor, PICTURES, prompts, padding=True)
    trees = unpack_leaves(together["leaf_boxes"], together["leaf_grids"])
    for prompt, images, own in ((PROMPTS[0], PICTURES[:1], trees[:1]), (PROMPTS[1], PICTURES[1:3], trees[1:3])):
        alone = qlip.process_for_question(model, processor, images, prompt)
        found = unpack_leaves(alone["leaf_boxes"], alone["leaf_grids"])
        assert [tree.boxes.tolist() for tree in found] == [tree.boxes.tolist() for tree in own]
    length = (together["input_ids"][0] == model.config.image_token_id).sum()
    assert length == len(trees[0])


def test_the_processor_alone_splits_by_the_scores_and_is_left_as_it_was():
    model, processor = attached("llava", **SETTINGS)
    before = ask(processor, PROMPTS[:1], PICTURES[:1])
    qlip.process_for_question(model, processor, PICTURES[:1], PROMPTS[:1])
    after = ask(processor, PROMPTS[:1], PICTURES[:1])
    by_score = ask(attached("llava", **{**SETTINGS, "budget": "score"})[1], PROMPTS[:1], PICTURES[:1])
    for name in before:
        assert torch.equal(before[name], after[name]) and torch.equal(before[name], by_score[name])


def test_what_cannot_be_asked_is_refused():
    model, processor = attached("llava", **SETTINGS)
    with pytest.raises(ValueError, match="the question 'why' is not in its prompt"):
        qlip.process_for_question(model, processor, PICTURES[0], PROMPTS[0], "why")
    with pytest.raises(TypeError, match="the processor is a LlavaProcessor; give the one that qlip.attach returned"):
        qlip.process_for_question(model, make_processor("llava"), PICTURES[0], PROMPTS[0])
    with pytest.raises(ValueError, match="there is no image to ask about"):
        qlip.process_for_question(model, processor, [], "why?")
    with pytest.raises(TypeError, match="size can't be given: QLIP prepares images by its own settings"):
        qlip.process_for_question(model, processor, PICTURES[0], PROMPTS[0], size={"shortest_edge": 3})
    vision, _ = qlip.attach(make_vision_model("clip"))
    with pytest.raises(TypeError, match="CLIPVisionModel is not an attached model with a language model"):
        qlip.process_for_question(vision, processor, PICTURES[0], PROMPTS[0])


def test_where_no_question_could_change_the_tree_the_model_does_not_run(monkeypatch: pytest.MonkeyPatch):
    model, processor = attached("llava", **{**SETTINGS, "alpha": float("inf")})
    monkeypatch.setattr(model, "forward", lambda **_: pytest.fail("no first pass is needed"))
    inputs = qlip.process_for_question(model, processor, PICTURES[0], PROMPTS[0])
    expected = ask(processor, PROMPTS[:1], PICTURES[:1])
    assert inputs["input_ids"].tolist() == expected["input_ids"].tolist()
