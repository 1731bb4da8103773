"""V* Bench by the likelihood of its options, on the embedded model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from llava.eval import eval_vstar, vstar_likelihood
from llava.eval.run import likelihood
from llava.eval.run.inputs.questions import Question
from llava.eval.run.likelihood import Choice, choose, option_losses, read_choice
from llava.images import load_image
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path, demo_picture_path
from tests.llava.eval.files import write_json, write_rows

QUESTION = "What colour is the ring?"
OPTIONS = ["red", "purple", "a purple ring and a cyan triangle", "green"]


@pytest.fixture(scope="module")
def engine(either_engine: ChatEngine) -> ChatEngine:
    return either_engine


@pytest.fixture
def picture(engine: ChatEngine) -> ImageTokens:
    with torch.inference_mode():
        return engine.model.encode_tokens(engine.prepare_images([load_image(demo_picture_path())]))[0]


@torch.inference_mode()
def loss_with_labels(engine: ChatEngine, picture: ImageTokens, option: str) -> float:
    """The oracle: the model's own loss on the whole conversation with all but the option ignored."""
    conversation = engine.question(QUESTION, 1)
    prompt = tokenizer_image_token(conversation.get_prompt(), engine.tokenizer, return_tensors="pt")
    conversation.messages[-1][1] = option
    ids = tokenizer_image_token(conversation.get_prompt(), engine.tokenizer, return_tensors="pt")[None]
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return engine.model(ids, labels=labels, images=[picture]).loss.item()


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_options_loss_is_the_models_own_whatever_its_batch(
    engine: ChatEngine, picture: ImageTokens, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [loss_with_labels(engine, picture, option) for option in OPTIONS]
    assert len(set(alone)) == len(OPTIONS)
    monkeypatch.setattr(engine.model.config, "tokenizer_padding_side", side)
    assert option_losses(engine, picture, QUESTION, OPTIONS) == pytest.approx(alone, abs=1e-4)
    assert option_losses(engine, picture, QUESTION, OPTIONS[:1]) == pytest.approx(alone[:1], abs=1e-4)


def test_an_option_too_long_for_the_context_is_refused(
    engine: ChatEngine, picture: ImageTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "context_len", 40)
    with pytest.raises(PromptTooLongError, match="exceed the model's context of 40"):
        option_losses(engine, picture, QUESTION, OPTIONS)


LISTED = {
    "question_id": 0,
    "image": "direct_attributes/sa_1.png",
    "category": "direct_attributes",
    "text": f"{QUESTION}\n(A) red\n(B) purple\nAnswer with the option's letter from the given choices directly.",
    "label": "B",
}


def test_options_come_from_the_question_or_from_the_annotation_whose_first_is_right(tmp_path: Path) -> None:
    assert read_choice(LISTED, tmp_path) == Choice(QUESTION, {"A": "red", "B": "purple"})
    content = {"question": "Which?", "options": ["It is purple.", "It is red.", "It is blue."], "bbox": []}
    write_json(tmp_path / "direct_attributes" / "sa_1.json", content)
    assert read_choice(LISTED, tmp_path) == Choice(
        "Which?", {"B": "It is purple.", "A": "It is red.", "C": "It is blue."}
    )


def test_a_question_without_options_or_with_a_label_outside_them_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="question 0 lists the options"):
        read_choice(LISTED | {"text": QUESTION}, tmp_path)
    for wrong in ("C", "purple"):
        with pytest.raises(ValueError, match=rf"label is '{wrong}'; it must be an option's letter, one of A, B"):
            read_choice(LISTED | {"label": wrong}, tmp_path)
    write_json(tmp_path / "direct_attributes" / "sa_1.json", {"question": "Which?"})
    with pytest.raises(ValueError, match=r"sa_1\.json has no question, or no list of options"):
        read_choice(LISTED, tmp_path)
    write_json(tmp_path / "direct_attributes" / "sa_1.json", {"question": "Which?", "options": ["It is red."]})
    with pytest.raises(ValueError, match=r"sa_1\.json lists 1 options; there must be at least two"):
        read_choice(LISTED, tmp_path)
    for content in ({"question": None, "options": ["a", "b"]}, {"question": "?", "options": ["a", ""]}):
        write_json(tmp_path / "direct_attributes" / "sa_1.json", content)
        with pytest.raises(ValueError, match=r"sa_1\.json: (None|'') is the question or an option; it must be text"):
            read_choice(LISTED, tmp_path)


@pytest.mark.parametrize(("losses", "text"), [([math.nan] * 2, None), ([0.1, math.nan], None), ([0.5, 0.5], "A")])
def test_losses_that_decide_nothing_choose_no_option_for_being_the_right_one(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch, losses: list[float], text: str | None
) -> None:
    """The annotation's first option is right; here its letter is B."""
    monkeypatch.setattr(likelihood, "option_losses", lambda *_: losses)
    preparer, asked = Preparer.of(engine.model.get_vision_tower()), Question(0, QUESTION, QUESTION, demo_picture_path())
    answer = choose(engine, preparer, asked, Choice(QUESTION, {"B": "purple", "A": "red"}))
    assert answer.text == text
    assert (text is None) == ("losses are not finite" in str(answer.error))


def test_the_command_continues_where_it_was_stopped_and_is_scored_as_generated_letters_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model sees a purple ring: of the four questions the first, second and fourth come out right."""
    (tmp_path / "direct_attributes").mkdir()
    (tmp_path / "direct_attributes" / "sa_1.png").write_bytes(demo_picture_path().read_bytes())
    other = f"{QUESTION}\n(A) purple\n(B) green"
    questions = [
        LISTED,
        LISTED | {"question_id": 1, "text": other, "label": "A"},
        LISTED | {"question_id": 2, "text": other, "label": "B"},
        LISTED | {"question_id": 3, "text": other, "label": "A", "category": "relative_position"},
    ]
    files = {
        "--question-file": write_rows(tmp_path / "q.jsonl", questions),
        "--answers-file": tmp_path / "out" / "a.jsonl",
    }
    flags = [f"{flag}={file}" for flag, file in files.items()]
    run = [*flags, f"--image-folder={tmp_path}", "--device=cpu"]
    assert vstar_likelihood.main(run) == 0
    whole = files["--answers-file"].read_bytes()
    assert [json.loads(line)["text"] for line in whole.splitlines()] == ["B", "A", "A", "A"]
    files["--answers-file"].write_bytes(whole[: len(whole) // 2])  # as a killed process leaves it
    assert vstar_likelihood.main(run) == 0
    assert files["--answers-file"].read_bytes() == whole
    assert vstar_likelihood.main([*run, "--no-qlip"]) == 2
    assert 'was made with other settings: tower is "qlip" there and "clip" now' in capsys.readouterr().err
    (tmp_path / "direct_attributes" / "sa_1.json").write_text(json.dumps({"question": QUESTION, "options": ["x", "y"]}))
    assert vstar_likelihood.main(run) == 2
    assert "but with another instruction or other options than these flags and files give" in capsys.readouterr().err
    metadata = json.loads(whole.splitlines()[0])["metadata"]
    assert (metadata["protocol"], metadata["tower"], metadata["decoding"]) == ("likelihood", "qlip", None)
    score = ["--result-file", str(files["--answers-file"]), "--json", str(tmp_path / "s.json")]
    assert eval_vstar.main([flags[0], *score]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "attributes": pytest.approx(200 / 3),
        "relations": 100.0,
        "overall": 75.0,
    }


def test_the_question_decides_on_the_tokens_and_not_the_options() -> None:
    settings = {"budget": "question", "max_tokens": 128}
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=settings))
    preparer, asked = Preparer.of(engine.model.get_vision_tower()), Question(0, QUESTION, QUESTION, demo_picture_path())
    chat = engine.submit(engine.question(QUESTION, 1), [load_image(demo_picture_path())], Sampling(temperature=0))
    "".join(chat)
    for options in ({"A": "red", "B": "purple"}, {"A": "green", "B": "a purple ring", "C": "yellow"}):
        answer = choose(engine, preparer, asked, Choice(QUESTION, options))
        assert torch.equal(answer.prepared.leaves.boxes, chat.views[0].leaves.boxes)
        shown = engine.vision.encode([answer.prepared])[0]
        expected = option_losses(engine, shown, QUESTION, list(options.values()))
        assert list(answer.question.extra["losses"].values()) == pytest.approx(expected, abs=1e-5)
    engine.close()


def test_a_picture_that_cannot_be_opened_is_an_error_row_and_the_others_are_answered(tmp_path: Path) -> None:
    (tmp_path / "direct_attributes").mkdir()
    (tmp_path / "direct_attributes" / "sa_1.png").write_bytes(demo_picture_path().read_bytes())
    broken = LISTED | {"question_id": 1, "image": "direct_attributes/sa_2.png"}
    questions, answers = write_rows(tmp_path / "q.jsonl", [broken, LISTED]), tmp_path / "a.jsonl"
    flags = [f"--question-file={questions}", f"--image-folder={tmp_path}", f"--answers-file={answers}", "--device=cpu"]
    assert vstar_likelihood.main([*flags, "--skip-unreadable"]) == 1
    assert [json.loads(line)["question_id"] for line in answers.read_text().splitlines()] == [0]
    (error,) = (json.loads(line) for line in (tmp_path / "a.errors.jsonl").read_text().splitlines())
    assert error["question_id"] == 1
    assert error["error"]
