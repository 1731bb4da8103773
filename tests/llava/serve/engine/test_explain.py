"""What an answer depended on, by leaf of the picture, beside other requests."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine, explain
from llava.serve.engine.errors import EngineClosedError
from llava.serve.engine.params import QLIPOptions
from llava.utils import demo_model_path
from tests.llava.serve.engine.engines import FIRST_ANSWER, GREEDY, Hold, NewEngine, submit
from tests.llava.serve.openai.serving import QUESTION, becomes_idle

CLIP = QLIPOptions(enabled=False)


@cache
def tiles_model() -> tuple[Any, ...]:
    """A model that was trained on tiles."""
    return load_pretrained_model(str(Path(demo_model_path()).parent / "llava-tiles-demo"), device="cpu", qlip=True)


def check_shares(explained: Any) -> None:
    weights = torch.cat([part.weights for part in explained.images])
    assert weights.dtype == torch.float32 and (weights >= 0).all() and float(weights.sum()) == pytest.approx(1)
    assert all(part.weights.shape == (len(part.leaves),) for part in explained.images)


def test_an_answer_is_generated_and_attributed_to_the_leaves_of_each_picture(
    new_engine: NewEngine, pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    explained = engine.explain(QUESTION, pictures[:1])
    check_shares(explained)
    assert explained.answer == FIRST_ANSWER
    (part,) = explained.images
    assert torch.equal(part.leaves.boxes, engine.vision.prepare(pictures[0], engine.vision.settings()).leaves.boxes)
    row, col, size = (part.leaves.boxes[part.weights.argmax()] * 14).tolist()  # the picture has whole cells
    heaviest = pictures[0].crop((col, row, col + size, row + size))
    assert len(heaviest.getcolors()) > 1  # a shape, on a ground of one colour
    again = engine.explain(engine.question(QUESTION, 1), pictures[:1], FIRST_ANSWER)
    torch.testing.assert_close(again.images[0].weights, part.weights)
    both = engine.explain(QUESTION, pictures[:2], "a ring")
    check_shares(both)
    assert [drawing.size for drawing in both.draw(pictures[:2])] == [image.size for image in pictures[:2]]


def test_a_photograph_is_explained_upright(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    """As a phone saves it; the frame is that of what is drawn on."""
    upright, exif, file = pictures[0].convert("RGB").resize((200, 120)), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    engine = new_engine()
    for options in (CLIP, QLIPOptions()):
        found, expected = (
            engine.explain(QUESTION, [image], "a ring", qlip=options).images[0] for image in (Image.open(file), upright)
        )
        assert found.frame == expected.frame
        assert torch.equal(found.weights, expected.weights)


def test_what_is_kept_of_earlier_prompts_is_dropped_where_attribution_runs_out_of_memory(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    expected = engine.explain(QUESTION, pictures[:1], FIRST_ANSWER).images[0].weights
    list(submit(engine, pictures[0]))
    assert becomes_idle(engine) and len(engine.prefixes) == 1
    attribute = explain.attribute_answer

    def attribute_in_what_is_free(*args: Any, **options: Any) -> Any:
        if len(engine.prefixes):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attribute(*args, **options)

    monkeypatch.setattr(explain, "attribute_answer", attribute_in_what_is_free)
    again = engine.explain(QUESTION, pictures[:1], FIRST_ANSWER).images[0].weights
    torch.testing.assert_close(again, expected)


def test_the_last_answer_of_a_conversation_is_attributed(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    """What was said before counts: the same answer to another question depends on other leaves."""
    engine, weights = new_engine(), []
    for newest in ("Is there a blue square?", "Is there a purple ring?"):
        conversation = engine.question(QUESTION, 1)
        conversation.messages[-1][1] = FIRST_ANSWER
        conversation.append_message(conversation.roles[0], newest)
        conversation.append_message(conversation.roles[1], None)
        weights.append(engine.explain(conversation, pictures[:1], "yes").images[0].weights)
        assert conversation.messages[-1][1] is None
    assert not torch.allclose(*weights, rtol=0.1)


@pytest.mark.parametrize(("size", "frame"), [((200, 100), (0.0, -0.5, 1.0, 1.5)), ((100, 400), (-1.5, 0.0, 2.5, 1.0))])
def test_clips_cells_lie_on_the_square_around_the_picture(
    new_engine: NewEngine, pictures: list[Image.Image], size: tuple[int, int], frame: Any
) -> None:
    engine = new_engine()
    explained = engine.explain(QUESTION, [pictures[0].crop((0, 0, *size))], "a ring", qlip=CLIP)
    check_shares(explained)
    assert (explained.images[0].leaves.grid, explained.images[0].frame) == ((8, 8), frame)


def test_without_padding_they_lie_on_the_middle_that_clip_crops_or_are_squeezed_as_siglip_does(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    monkeypatch.setattr(engine.model.config, "image_aspect_ratio", "square")
    wide = pictures[0].crop((0, 0, 200, 100))
    assert engine.explain(QUESTION, [wide], "a ring", qlip=CLIP).images[0].frame == (0.25, 0.0, 0.75, 1.0)
    siglips = {"do_center_crop": False, "size": {"height": 112, "width": 112}}
    for name, value in siglips.items():
        monkeypatch.setattr(engine.vision.quadtree_tower.native_processor, name, value)
    assert engine.explain(QUESTION, [wide], "a ring", qlip=CLIP).images[0].frame == (0.0, 0.0, 1.0, 1.0)


def test_what_a_thumbnail_weighs_is_spread_over_the_leaves_below(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    settings = replace(engine.vision.settings(), thumbnail=True)
    count = len(engine.vision.prepare(pictures[0], settings).leaves)

    def attribute(model: Any, prompt: Any, answer: Any, tokens: Any, method: Any) -> list[torch.Tensor]:
        assert tokens[0].span.count == 64 + count
        weights = torch.zeros(64 + count)
        weights[:64] = 1 / 64
        return [weights]

    monkeypatch.setattr("llava.serve.engine.explain.attribute_answer", attribute)
    (part,) = engine.explain(QUESTION, pictures[:1], "a ring", qlip=settings).images
    areas = part.leaves.sizes.float() ** 2
    torch.testing.assert_close(part.weights, areas / areas.sum())


@pytest.mark.parametrize("options", [QLIPOptions(), CLIP], ids=["leaves in the places of tiles", "tiles"])
def test_the_tokens_of_tiles_have_their_places_and_newlines_none(pictures: list[Image.Image], options: Any) -> None:
    engine = ChatEngine(*tiles_model())
    try:
        explained = engine.explain(QUESTION, pictures[:1], "a ring", qlip=options)
    finally:
        engine.close()
    check_shares(explained)
    assert sum(explained.images[0].leaves.sizes ** 2) == explained.images[0].leaves.grid[0] ** 2
    assert explained.images[0].leaves.grid == ((32, 32) if options is not CLIP else (16, 16))


def test_a_question_that_decides_what_is_split_is_asked_first(
    new_engine: NewEngine, pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    settings = replace(engine.vision.settings(), budget="question")
    asked = submit(engine, pictures[0], qlip=settings)
    answer = "".join(asked)
    explained = engine.explain(QUESTION, pictures[:1], answer, qlip=settings)
    check_shares(explained)
    assert torch.equal(explained.images[0].leaves.boxes, asked.views[0].leaves.boxes)


@pytest.mark.parametrize("joins", [True, False])
def test_answers_that_run_meanwhile_do_not_change_and_leave_no_gradients(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], joins: bool
) -> None:
    engine = new_engine(joins=joins)
    gate, first = hold(engine)
    second = submit(engine, pictures[0])
    gate.opened.set()
    explained = engine.explain(QUESTION, pictures[:1], FIRST_ANSWER)
    check_shares(explained)
    assert "".join(first) == "".join(second) == FIRST_ANSWER
    assert not any(part.weights.requires_grad for part in explained.images)
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_a_failure_is_the_callers_and_the_engine_answers_on(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    with monkeypatch.context() as broken:
        broken.setattr("llava.serve.engine.explain.attribute_answer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.explain(QUESTION, pictures[:1], "a ring")
    assert engine.waiting == 0
    assert engine.ask(QUESTION, pictures[:1], GREEDY) == FIRST_ANSWER
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.explain(QUESTION, pictures[:1], "a ring")


def test_what_cannot_be_explained_is_refused(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    engine = new_engine()
    with pytest.raises(ValueError, match="there is no image"):
        engine.explain(QUESTION, [])
    with pytest.raises(ValueError, match="the answer is empty"):
        engine.explain(QUESTION, pictures[:1], " ")
    answered = engine.question(QUESTION, 1)
    answered.messages[-1][1] = "a ring"
    with pytest.raises(ValueError, match="does not wait for an answer"):
        engine.explain(answered, pictures[:1])
    with pytest.raises(ValueError, match="exceed the model's context of 2048"):
        engine.explain(QUESTION, pictures[:1], "a ring " * 2000)
    with pytest.raises(TypeError, match="answer is 3; it must be text"):
        engine.explain(QUESTION, pictures[:1], 3)  # type: ignore[arg-type]
    explained = engine.explain(QUESTION, pictures[:1], "a ring")
    for given in ([], pictures[:2]):
        with pytest.raises(ValueError, match=f"{len(given)} pictures are given; the answer is about 1"):
            explained.draw(given)
    for wrong in (-1, "1"):
        with pytest.raises(ValueError, match=f"the number of images is {wrong!r}; it must be an integer, 0 or more"):
            engine.question(QUESTION, wrong)  # type: ignore[arg-type]
