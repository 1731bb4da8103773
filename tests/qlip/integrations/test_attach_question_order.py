"""What the question-aware budget of an attached model can't be asked, and what it says then."""

from __future__ import annotations

import pytest

import qlip
from tests.qlip.integrations.models import PICTURES, PROMPTS, attached, picture

ASKED = "what is it?"


@pytest.fixture(scope="module")
def pair():
    return attached("llava", budget="question")


@pytest.mark.parametrize(("kind", "settings"), [("llava", {}), ("llava_next", {"tiling": "tiles", "max_tokens": 60})])
def test_a_model_whose_scores_decide_is_not_asked(kind, settings):
    model, processor = attached(kind, **settings)
    change = " and tiling='image'" if settings else ""
    with pytest.raises(ValueError, match=f"budget is 'score', .* attach it with budget='question'{change}, or call"):
        qlip.process_for_question(model, processor, PICTURES[0], PROMPTS[0])
    model, processor = qlip.attach(model, processor, budget="question", **({"tiling": "image"} if settings else {}))
    assert "leaf_boxes" in qlip.process_for_question(model, processor, PICTURES[0], PROMPTS[0])


@pytest.mark.parametrize("questions", [ASKED, None], ids=["the question", "all text"])
def test_an_image_behind_all_that_attends_is_named(pair, questions):
    """In a causal model none of it sees the image: its weights would be 0, and cells be split in raster order."""
    for text, images in ((f"{ASKED} <image>", 1), (f"see <image> {ASKED} <image>", 2)):
        with pytest.raises(ValueError, match="no token of the question follows the last image of prompt 0, .* put the"):
            qlip.process_for_question(*pair, PICTURES[:images], text, questions)
    qlip.process_for_question(*pair, PICTURES[0], f"{ASKED} <image> ", questions)  # a blank sees it


def test_the_prompt_of_a_batch_whose_image_comes_last_is_named(pair):
    texts = [f"<image> {ASKED}", "no picture", "see <image>"]
    with pytest.raises(ValueError, match="the last image of prompt 2"):
        qlip.process_for_question(*pair, PICTURES[:2], texts, [ASKED, "picture", "see"], padding=True)


@pytest.mark.parametrize(
    ("texts", "questions", "message"),
    [
        (["<image> a", "<image> a"], ["a"], "1 questions are given for 2 prompts; give one for each"),
        ("<image> a", ["a", "b"], "2 questions are given for 1 prompts; give one for each"),
        (["<image> a", "<image> b"], "a", "1 questions are given for 2 prompts; give one for each"),
        (["<image> a"], ["b"], "the question 'b' is not in its prompt '<image> a'"),
    ],
)
def test_questions_are_checked_before_images_are_cut(pair, texts, questions, message):
    with pytest.raises(ValueError, match=message):
        qlip.process_for_question(*pair, "not an image", texts, questions)


def test_a_question_after_its_images_is_asked(pair):
    model, processor = pair
    inputs = qlip.process_for_question(*pair, [picture(280, 280, 7)], f"see <image> {ASKED}", ASKED)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == (inputs["leaf_boxes"][0, :, 2] > 0).sum()
