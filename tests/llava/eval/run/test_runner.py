"""Each question gets the answer of a chat; a picture is encoded once; no question is lost to another's fault."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval.run import runner as module
from llava.eval.run import windows
from llava.eval.run.answers.answer import Answer
from llava.eval.run.batching import BatchLimits
from llava.eval.run.generate import prompt_ids
from llava.eval.run.inputs.preparation import prepare_ahead
from llava.eval.run.inputs.questions import Question
from llava.eval.run.runner import Runner
from llava.eval.run.windows import list_sources
from llava.model.builder import load_pretrained_model
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene
from qlip.patches import CutImage

GREEDY = Sampling(0.0, max_new_tokens=10)
TO_THE_END = Sampling(0.0, max_new_tokens=64)
TEXTS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?", "What color is the ring?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, preset in enumerate(("detail", "base", "detail", "base")):
        Image.fromarray(scene(PRESETS[preset], 9, i).image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def engine(either_engine: ChatEngine) -> ChatEngine:
    return either_engine


QLIP = pytest.mark.parametrize("either_engine", [True], ids=["qlip"], indirect=True)
"""For what does not depend on the tower."""


@pytest.fixture(scope="module")
def by_question() -> ChatEngine:
    """The embedded model, whose tokens the question decides on."""
    settings = {"budget": "question", "max_tokens": 128}
    return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=settings))


def ask(name: int | str, text: str, image: Path | None, index: int = 0) -> Question:
    return Question(name, text, text, image, index=index)


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[Question]:
    """Shuffled, several to a picture, some without one; their places do not start at 0."""
    questions = [ask(f"{i}", text, folder / f"{i % 4}.png") for i in range(4) for text in TEXTS]
    questions += [ask("imageless", "What is in the picture?", None)]
    random.Random(0).shuffle(questions)
    return [replace(question, index=100 + i) for i, question in enumerate(questions)]


@pytest.fixture(scope="module")
def alone(engine: ChatEngine, asked: list[Question]) -> dict[int, str]:
    """The oracle: each question in its own chat."""
    return {
        question.index: engine.ask(question.text, [Image.open(question.image)] if question.image else [], GREEDY)
        for question in asked
    }


def answers(runner: Runner, asked: list[Question]) -> dict[int, Answer]:
    preparer = Preparer.of(runner.engine.model.get_vision_tower())
    ready = prepare_ahead(preparer, list_sources(asked, runner.limits), workers=0, ahead=1)
    found = [answer for batch in runner.run(asked, ready) for answer in batch]
    assert next(ready, None) is None  # no picture is opened that is not shown
    assert sorted(answer.question.index for answer in found) == [question.index for question in asked]
    return {answer.question.index: answer for answer in found}


@pytest.mark.parametrize("limits", [BatchLimits(3, 400), BatchLimits(64), BatchLimits(64, waste=1.0)])
def test_an_answer_is_that_of_a_chat_whatever_its_batch(
    engine: ChatEngine, asked: list[Question], alone: dict[int, str], limits: BatchLimits
) -> None:
    found = answers(Runner(engine, GREEDY, limits=limits), asked)
    assert {index: answer.text for index, answer in found.items()} == alone
    assert len(set(alone.values())) > 5


def test_each_question_decides_on_its_own_tokens(by_question: ChatEngine, asked: list[Question]) -> None:
    asked = asked[:9]
    found = answers(Runner(by_question, GREEDY, limits=BatchLimits(5, waste=1.0)), asked)
    trees: dict[Any, set[str]] = {}
    for question in asked:
        answer, images = found[question.index], [Image.open(question.image)] if question.image else []
        chat = by_question.submit(by_question.question(question.text, len(images)), images, GREEDY)
        assert answer.text == "".join(chat).strip()
        if answer.prepared is not None:
            assert answer.prepared.tokens == chat.usage.visual_tokens >= 64
            assert torch.equal(answer.prepared.leaves.boxes, chat.views[0].leaves.boxes)
            trees.setdefault(question.image, set()).add(str(answer.prepared.leaves.boxes.tolist()))
    assert max(map(len, trees.values())) > 1


@QLIP
def test_a_sampled_answer_depends_on_the_runs_seed_and_its_position_only(
    engine: ChatEngine, asked: list[Question]
) -> None:
    free = Sampling(1.5, max_new_tokens=6)
    some = answers(Runner(engine, free, seed=4, limits=BatchLimits(64)), asked)
    part = answers(Runner(engine, free, seed=4, limits=BatchLimits(2)), asked[5:9])
    assert all(some[index].text == answer.text for index, answer in part.items())
    other = answers(Runner(engine, free, seed=5, limits=BatchLimits(64)), asked)
    assert [answer.text for answer in other.values()] != [some[index].text for index in other]


def test_a_picture_is_encoded_once_in_a_window(
    engine: ChatEngine, asked: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    tower = engine.model.get_vision_tower()
    handle = tower.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    monkeypatch.setattr(windows, "WINDOW", 9)
    answers(Runner(engine, GREEDY, limits=BatchLimits(2)), asked)
    handle.remove()
    assert sum(seen) == 4  # all 17 questions are in one window of 18


def test_the_tower_pads_little_where_texts_hide_how_pictures_differ(
    engine: ChatEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tokens with a long question, many with a short one: prompts of one length, which are one batch."""
    tower = engine.model.get_vision_tower()
    plain = tmp_path / "plain.png"
    Image.new("RGB", (448, 448), (20, 90, 200)).save(plain)
    files = [folder / "0.png", plain, folder / "2.png"]
    tokens = [picture.tokens for picture in map(Preparer.of(tower), files) if isinstance(picture, PreparedImage)]
    questions = [ask(i, TEXTS[0] + " a" * (max(tokens) - tokens[i]), file, i) for i, file in enumerate(files)]
    seen: list[list[int]] = []
    handle = tower.register_forward_pre_hook(lambda _, arguments: seen.append([count(image) for image in arguments[0]]))
    prompts: list[int] = []
    generate = module.generate
    monkeypatch.setattr(module, "generate", lambda *given: prompts.append(len(given[1])) or generate(*given))
    found = answers(Runner(engine, GREEDY), questions)
    handle.remove()
    assert [answer.error for answer in found.values()] == [None] * 3
    assert prompts == [3]
    assert sorted(sum(seen, [])) == sorted(tokens)
    assert all(1 - sum(batch) / (len(batch) * max(batch)) < 0.1 for batch in seen)


def count(image: Any) -> int:
    """Tokens of a prepared picture of the embedded model."""
    return len(image.leaves) if isinstance(image, CutImage) else 64


@QLIP
def test_a_length_that_nobody_typed_is_what_the_context_leaves(engine: ChatEngine, folder: Path) -> None:
    question, long = ask(0, TEXTS[0], folder / "0.png"), Sampling(0.0, max_new_tokens=engine.context_len)
    assert "exceed the model's context" in str(answers(Runner(engine, long), [question])[0].error)
    found = answers(Runner(engine, long, shorten=True), [question])[0]
    assert found.text == answers(Runner(engine, TO_THE_END), [question])[0].text


@QLIP
def test_a_question_may_say_itself_where_its_image_goes(engine: ChatEngine, folder: Path) -> None:
    questions = [ask(0, TEXTS[0], folder / "0.png", 0), ask(1, f"<image>\n{TEXTS[0]}", folder / "0.png", 1)]
    plain, placed = answers(Runner(engine, GREEDY), questions).values()
    assert placed.text == plain.text


@QLIP
def test_faults_stay_with_their_question(
    engine: ChatEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((folder / "0.png").read_bytes()[:200])
    questions = [
        ask(0, TEXTS[0], folder / "0.png", 0),
        ask(1, TEXTS[0], tmp_path / "missing.png", 1),
        ask(2, TEXTS[0], broken, 2),
        ask(3, "<image> and <image>?", folder / "1.png", 3),
        ask(4, "word " * 3000, folder / "1.png", 4),
        ask(5, TEXTS[1], folder / "1.png", 5),
        ask(6, TEXTS[1], folder / ("x" * 300), 6),
    ]
    found = answers(Runner(engine, GREEDY), questions)
    errors = [found[i].error for i in range(7)]
    assert errors[0] is None and errors[5] is None and found[0].text and found[5].text
    assert errors[1] == f"no such image file: {tmp_path / 'missing.png'}"
    assert str(errors[2]).startswith("not a readable image")
    assert errors[3] == "the prompt has 2 places for images instead of 1"
    assert "exceed the model's context" in str(errors[4])
    assert str(errors[6]).endswith("File name too long")
    assert all(found[i].text is None for i in (1, 2, 3, 4, 6))


@QLIP
def test_a_batch_that_memory_is_too_small_for_is_halved(
    engine: ChatEngine, asked: list[Question], alone: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = module.generate

    def small(engine: Any, prompts: Any, pictures: Any, *options: Any) -> list[str]:
        if len(prompts) > 2 or None in pictures:
            raise torch.OutOfMemoryError("out of memory")
        return generate(engine, prompts, pictures, *options)

    monkeypatch.setattr(module, "generate", small)
    found = answers(Runner(engine, GREEDY), asked)
    lost = [index for index, answer in found.items() if answer.text is None]
    assert [found[index].question.question_id for index in lost] == ["imageless"]
    assert "more than the device's memory can take" in str(found[lost[0]].error)
    assert all(answer.text == alone[index] for index, answer in found.items() if index not in lost)


@QLIP
def test_what_the_model_fails_on_is_an_error_and_the_rest_of_its_batch_is_answered(
    engine: ChatEngine, asked: list[Question], alone: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refine, bad = module.refine_for_questions, prompt_ids(engine, TEXTS[0])

    def spoil(engine: ChatEngine, prompts: list[torch.Tensor], pictures: Any, seen: Any) -> Any:
        pictures, seen = refine(engine, prompts, pictures, seen)
        spoilt = [torch.equal(ids, bad) for ids in prompts]
        nothing = [replace(tokens, features=tokens.features * torch.nan) if tokens else None for tokens in seen]
        return pictures, [none if bad else tokens for bad, none, tokens in zip(spoilt, nothing, seen, strict=True)]

    monkeypatch.setattr(module, "refine_for_questions", spoil)
    found = answers(Runner(engine, GREEDY, limits=BatchLimits(64, waste=1.0)), asked)
    spoilt = {question.index for question in asked if question.image and question.text == TEXTS[0]}
    assert len(spoilt) == 4
    for index, answer in found.items():
        if index in spoilt:
            assert (answer.text, answer.error) == (None, "the model's logits have no finite maximum: nan")
        else:
            assert (answer.text, answer.error) == (alone[index], None)
