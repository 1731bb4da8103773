"""The engine answers from what the newest question attends to, and counts what asking first costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from llava.conversation import conv_templates
from llava.eval.run.generate import prompt_ids
from llava.images import load_image
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.question_budget import refine_images
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.params import Sampling
from llava.serve.engine.prompting import Turn, build_conversation, question_start
from llava.utils import demo_picture_paths
from tests.llava.serve.engine.engines import submit
from tests.llava.serve.openai.serving import Gate, loaded

GREEDY = Sampling(temperature=0, max_new_tokens=5)
ASKED = ("What is in the picture?", "How many objects are there?", "Is there a red ring?")


@pytest.fixture(scope="module")
def engine() -> Iterator[ChatEngine]:
    made = ChatEngine(*loaded())
    yield made
    made.close()


@pytest.fixture(scope="module")
def settings(engine: ChatEngine) -> Any:
    """In the paper's geometry the pixels alone give the tree of the original, and these questions different trees."""
    paper = {"geometry": "grid", "leaf_position": "centre", "noise_floor": False}
    return replace(engine.vision.tower.settings, budget="question", **paper)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [load_image(path) for path in demo_picture_paths()[1::2]]


def two_turns(engine: ChatEngine, pictures: list[Image.Image], newest: str) -> tuple[Any, list[Any]]:
    turns = [
        Turn("user", ASKED[0], (pictures[0],)),
        Turn("assistant", "a red ring"),
        Turn("user", newest, (pictures[1],)),
    ]
    return build_conversation(engine, turns)


def leaves(answer: Any) -> list[torch.Tensor]:
    return [view.leaves.boxes for view in answer.views]


def test_requests_in_a_batch_get_the_answers_and_trees_that_they_get_alone(engine, settings, pictures):
    requests = [(picture, text) for picture in pictures for text in ASKED]
    alone = [submit(engine, picture, text, qlip=settings, sampling=GREEDY) for picture, text in requests]
    expected = [("".join(answer), [boxes.tolist() for boxes in leaves(answer)]) for answer in alone]
    with Gate(engine) as gate:
        first = submit(engine, pictures[0])
        gate.reached.wait()
        together = [submit(engine, picture, text, qlip=settings, sampling=GREEDY) for picture, text in requests]
        together.append(submit(engine, pictures[1], ASKED[0]))  # its own score decides
        gate.opened.set()
        found = [("".join(answer), [boxes.tolist() for boxes in leaves(answer)]) for answer in together]
        "".join(first)
    assert gate.batches == [1, 7]
    assert found[:-1] == expected
    assert len({str(tree) for _, tree in expected}) > 2  # questions see different trees
    assert together[-1].usage.first_pass_tokens == 0


def test_questions_of_a_batch_are_asked_in_pieces(new_engine, settings, pictures, monkeypatch):
    """A prompt is 64 tokens of the unsplit image and some 45 of text; two of them fit into a piece."""
    requests = list(zip([*pictures, pictures[0]], ASKED, strict=True))
    options = {"qlip": settings, "sampling": GREEDY}
    engine = new_engine(joins=False, max_join_tokens=240)
    alone = [submit(engine, picture, text, **options) for picture, text in requests]
    expected = [("".join(answer), [boxes.tolist() for boxes in leaves(answer)]) for answer in alone]
    asked = []

    def refine(model, prompts, *rest):
        asked.append((len(prompts), max(len(prompt) - 1 + 64 for prompt in prompts)))
        return refine_images(model, prompts, *rest)

    monkeypatch.setattr("llava.serve.engine.encoding.refine_images", refine)
    with Gate(engine) as gate:
        first = submit(engine, pictures[0])
        gate.reached.wait()
        together = [submit(engine, picture, text, **options) for picture, text in requests]
        gate.opened.set()
        found = [("".join(answer), [boxes.tolist() for boxes in leaves(answer)]) for answer in together]
        "".join(first)
    assert gate.batches == [1, 3] and found == expected
    assert [rows for rows, _ in asked] == [2, 1]
    assert max(rows * tokens for rows, tokens in asked) <= 240


def test_images_that_a_question_is_asked_about_are_encoded_in_pieces_between_tokens_of_a_running_answer(
    new_engine, hold, settings, pictures, passes, monkeypatch
):
    engine = new_engine(max_join_tokens=100)
    conversation, shown = two_turns(engine, pictures, ASKED[2])
    (expected,) = [list(engine.submit(conversation, shown, GREEDY, settings))]
    gate, first = hold(engine)
    encode, encoded = engine.vision.encode, list[tuple[int, int]]()

    def note(images):
        encoded.append((len(images), len(noted)))
        return encode(images)

    monkeypatch.setattr(engine.vision, "encode", note)
    noted = passes(engine)
    answer = engine.submit(conversation, shown, GREEDY, settings)
    gate.opened.set()
    assert list(answer) == expected and "".join(first)
    (_, (one, before), (other, after), *_) = encoded  # after the first request's own: 64 tokens each, unsplit
    assert (one, other) == (1, 1) and noted[before:after] == [(1, 1)]


def test_the_usage_counts_both_passes(engine, settings, pictures):
    answer = submit(engine, pictures[0], ASKED[0], qlip=settings)
    assert answer.usage.visual_tokens == answer.views[0].tokens  # the most that it may be
    bound = answer.usage.visual_tokens
    "".join(answer)
    usage = answer.usage
    assert usage.first_pass_tokens == 64 < usage.visual_tokens == answer.views[0].tokens <= bound
    assert len(answer.views[0].leaves) == usage.visual_tokens
    assert usage.first_pass_seconds > 0
    plain = submit(engine, pictures[0], ASKED[0])
    "".join(plain)
    assert plain.usage.first_pass_tokens == 0


def test_the_newest_question_decides_on_the_images_of_all_turns(engine, settings, pictures):
    conversation, shown = two_turns(engine, pictures, ASKED[2])
    answer = engine.submit(conversation, shown, GREEDY, settings)
    views, prompt = list(answer.views), answer.row.prompt
    "".join(answer)
    newest = engine.tokenizer(ASKED[2], add_special_tokens=False).input_ids
    text = [token for token in prompt[answer.row.question :].tolist() if token > 0]
    assert len(newest) < len(text) < len(newest) + 16  # roles and line breaks, none of the first turn
    (expected,) = refine_images(engine.model, [prompt], [answer.row.question], [views])
    assert [boxes.tolist() for boxes in leaves(answer)] == [view.leaves.boxes.tolist() for view in expected]


@pytest.mark.parametrize("name", ["vicuna_v1", "mpt", "llava_llama_2", "llava_v0", "mistral_instruct", "qwen_1_5"])
def test_the_newest_question_is_found_in_every_format(name):
    conversation = conv_templates[name].copy()
    for text in ("first question", "first answer", "second question", None):
        conversation.append_message(conversation.roles[len(conversation.messages) % 2], text)
    prompt = conversation.get_prompt()
    tail = prompt[question_start(prompt, conversation) :]
    assert "second question" in tail and "first" not in tail


@pytest.mark.parametrize("name", ["vicuna_v1", "mpt", "llava_llama_2", "llava_v0"])
def test_a_question_may_quote_the_text_of_its_role(name):
    conversation = conv_templates[name].copy()
    role = conversation.roles[0]
    for text in ("first question", "first answer", f"Who said {role}: or [INST] here?", None):
        conversation.append_message(conversation.roles[len(conversation.messages) % 2], text)
    prompt = conversation.get_prompt()
    tail = prompt[question_start(prompt, conversation) :]
    assert "Who said" in tail and "first" not in tail


def test_a_format_without_roles_asks_with_the_whole_prompt():
    plain = conv_templates["plain"]
    assert question_start("<image>\nWhat?", plain) == 0
    assert question_start("no role here", conv_templates["vicuna_v1"]) == 0


def test_a_prompt_is_refused_where_the_most_that_it_may_need_exceeds_the_context(
    engine, settings, pictures, monkeypatch
):
    options = {"qlip": replace(settings, llm_positions="sequential"), "sampling": GREEDY}
    fits = submit(engine, pictures[0], ASKED[0], **options)
    "".join(fits)
    text, most = fits.usage.text_tokens, engine.vision.prepare(pictures[0], settings).tokens
    assert most >= fits.usage.visual_tokens
    monkeypatch.setattr(engine, "context_len", text + most + GREEDY.max_new_tokens - 1)
    with pytest.raises(PromptTooLongError, match=f"{text} text tokens, {most} positions of images"):
        submit(engine, pictures[0], ASKED[0], **options)


def test_a_request_that_is_cancelled_while_its_question_is_asked_generates_nothing(
    engine, settings, pictures, monkeypatch
):
    def refine(*arguments):
        answers[0].row.cancelled.set()
        return refine_images(*arguments)

    monkeypatch.setattr("llava.serve.engine.encoding.refine_images", refine)
    monkeypatch.setattr("llava.serve.engine.continuous.place_prompt", lambda *_: pytest.fail("its prompt was run"))
    with Gate(engine) as gate:
        answers = [submit(engine, pictures[0], ASKED[0], qlip=settings)]
        gate.reached.wait()
        gate.opened.set()
        assert "".join(answers[0]) == "" and answers[0].finish_reason == "cancelled"


@torch.inference_mode()
def test_generate_asks_first_too_where_the_towers_settings_say_so(engine, settings, pictures):
    """LLaVA's own interface: pixels in, tokens out; one question, all of whose text decides."""
    model, tower = engine.model, engine.vision.tower
    view = engine.vision.prepare(pictures[0], settings)
    pixels = tower.image_processor.cutter.normalise(pictures[0], settings)
    prompt = prompt_ids(engine, ASKED[0])
    ((refined,),) = refine_images(model, [prompt], [0], [[view]])
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(prompt[None], images=encode_prepared(model, [refined]), **options)
    before = tower.settings
    try:
        tower.settings = settings
        found = model.generate(prompt[None], images=[pixels], **options)
    finally:
        tower.settings = before
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logits[0], expected.logits[0], atol=1e-4, rtol=1e-4)
