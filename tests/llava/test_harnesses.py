"""lmms-eval and VLMEvalKit drive the package by their adapters' own calls and get the answers that a chat gives.

The adapters themselves are not needed here; `scripts/harness/lmms_eval_check.py` runs lmms-eval's, unmodified.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.eval.run.inputs.questions import Question
from llava.eval.run.likelihood import Choice, choose
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene

QUESTIONS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Pictures of two sizes, so that a batch is ragged where the tower keeps sizes."""
    return [
        Image.fromarray(scene(PRESETS[preset], 31, i).image) for i, preset in enumerate(("detail", "base", "detail"))
    ]


@dataclass
class Loaded:
    """What an adapter holds."""

    tokenizer: Any
    model: Any
    processor: Any
    context: int

    def engine(self) -> ChatEngine:
        return ChatEngine(self.tokenizer, self.model, self.processor, self.context)


@pytest.fixture(scope="module", params=[None, False], ids=["as the checkpoint says", "clip"])
def lmms(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """lmms-eval's way to load: with an argument that only some versions of LLaVA know, and again without."""
    path = str(demo_model_path())
    options = {"multimodal": True, "attn_implementation": "sdpa"}
    name = get_model_name_from_path(path)
    own = {} if request.param is None else {"qlip": request.param}
    try:
        loaded = load_pretrained_model(path, None, name, device_map="auto", **options, **own)
        pytest.fail("an unknown argument must be refused, or be known and used")
    except TypeError:
        options.pop("multimodal")
        loaded = load_pretrained_model(path, None, name, device_map="auto", **options, **own)
    found = Loaded(*loaded)
    found.model.eval()
    found.model.tie_weights()
    found.model.to(torch.device("cpu"))
    yield found


def lmms_generate(lmms: Loaded, asked: Sequence[tuple[Image.Image, str]], max_new_tokens: int = 64) -> list[str]:
    """The calls of lmms-eval's `generate_until` on one batch."""
    visuals = [image for image, _ in asked]
    tensors = process_images(visuals, lmms.processor, lmms.model.config)
    if type(tensors) is list:
        tensors = [image.to(dtype=torch.float16, device="cpu") for image in tensors]
    else:
        tensors = tensors.to(dtype=torch.float16, device="cpu")
    rows = []
    for _, context in asked:
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{context}")
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        rows.append(tokenizer_image_token(prompt, lmms.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt"))
    padding = lmms.tokenizer.pad_token_id if lmms.tokenizer.pad_token_id is not None else lmms.tokenizer.eos_token_id
    left = lmms.tokenizer.padding_side == "left"
    rows = [torch.flip(row, [0]) for row in rows] if left else rows
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    ids = torch.flip(ids, [1]) if left else ids
    said = lmms.model.generate(
        ids,
        attention_mask=ids.ne(padding),
        pad_token_id=padding,
        images=tensors,
        image_sizes=[image.size for image in visuals],
        do_sample=False,
        temperature=0,
        top_p=None,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
    )
    return lmms.tokenizer.batch_decode(said, skip_special_tokens=True)


@pytest.fixture(scope="module")
def chats(lmms: Loaded, pictures: list[Image.Image]) -> dict[tuple[int, str], str]:
    """What a chat answers, by picture and question."""
    engine = lmms.engine()
    answers = {(i, text): engine.ask(text, [pictures[i]]) for text in QUESTIONS for i in (0, 1)}  # sizes take turns
    engine.close()
    assert len(set(answers.values())) > 3
    return answers


@pytest.mark.parametrize(("batch", "side"), [(1, "left"), (3, "left"), (3, "right")])
def test_lmms_eval_generates_what_a_chat_answers(
    lmms: Loaded,
    pictures: list[Image.Image],
    chats: dict[tuple[int, str], str],
    batch: int,
    side: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lmms.tokenizer, "padding_side", side)
    asked = [(pictures[i], question) for i, question in chats]
    said = [text for i in range(0, len(asked), batch) for text in lmms_generate(lmms, asked[i : i + batch])]
    assert said == list(chats.values())


def lmms_losses(lmms: Loaded, picture: Image.Image, question: str, options: Sequence[str]) -> list[float]:
    """The calls of lmms-eval's `loglikelihood`, one by one; the number of the logits tells the image's tokens."""
    losses = []
    for option in options:
        image = process_images([picture], lmms.processor, lmms.model.config).to(dtype=torch.float16, device="cpu")
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
        conversation.append_message(conversation.roles[1], None)
        prompt = conversation.get_prompt()
        context = tokenizer_image_token(prompt, lmms.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
        conversation.messages[1][1] = option
        prompt = conversation.get_prompt()
        ids = tokenizer_image_token(prompt, lmms.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
        labels = ids.clone()
        labels[0, : context.shape[1]] = -100
        with torch.inference_mode():
            outputs = lmms.model(
                input_ids=ids, labels=labels, images=image, use_cache=True, image_sizes=[list(picture.size)]
            )
        losses.append(outputs["loss"].item())
    return losses


def likelihood_losses(lmms: Loaded, file: Path, question: str, options: Sequence[str]) -> list[float]:
    """The losses by which `llava.eval.vstar_likelihood` chooses."""
    choice = Choice(question, dict(zip("ABC", options, strict=True)))
    answer = choose(lmms.engine(), Preparer.of(lmms.model.get_vision_tower()), Question(0, "", "", file, ""), choice)
    return list(answer.question.extra["losses"].values())


OPTIONS = ["a red circle", "a blue square and a green ring", "yes"]


def test_lmms_eval_measures_the_loss_that_a_choice_by_likelihood_does(
    lmms: Loaded, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """lmms-eval halves the precision of the pixels, which is as near as the losses can come."""
    pictures[0].save(tmp_path / "0.png")
    expected = likelihood_losses(lmms, tmp_path / "0.png", QUESTIONS[0], OPTIONS)
    assert lmms_losses(lmms, pictures[0], QUESTIONS[0], OPTIONS) == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_the_question_and_not_the_option_decides_on_the_tokens_of_lmms_evals_losses(
    pictures: list[Image.Image], tmp_path: Path
) -> None:
    losses = {}
    pictures[0].save(tmp_path / "0.png")
    for budget in ("score", "question"):
        settings = {"budget": budget, "max_tokens": 84, "question_share": 0.3}
        lmms = Loaded(*load_pretrained_model(demo_model_path(), device="cpu", qlip=settings))
        losses[budget] = lmms_losses(lmms, pictures[0], QUESTIONS[2], OPTIONS)
        expected = likelihood_losses(lmms, tmp_path / "0.png", QUESTIONS[2], OPTIONS)
        assert losses[budget] == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert losses["score"] != pytest.approx(losses["question"], rel=0.05)


def test_a_prompt_beyond_the_context_is_a_warning(
    lmms: Loaded, pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """LLaVA says nothing, and the answer is noise."""
    lmms_generate(lmms, [(pictures[0], QUESTIONS[0])], 1)
    assert not caplog.records
    lmms_generate(lmms, [(pictures[0], "What? " * 1200)], 1)
    assert f"and the model's context has {lmms.context}: answers will be wrong" in caplog.text


@pytest.fixture(scope="module")
def vlmeval() -> Loaded:
    """VLMEvalKit's way to load."""
    path = str(demo_model_path())
    name = get_model_name_from_path(path)
    return Loaded(*load_pretrained_model(model_path=path, model_base=None, model_name=name, device_map="cpu"))


SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)


def vlmeval_prompt(content: str) -> str:
    return f"{SYSTEM}USER: {content} ASSISTANT: "


def vlmeval_generate(vlmeval: Loaded, content: str, paths: Sequence[Path]) -> str:
    """The calls of VLMEvalKit's `generate_inner`, its bare object of settings included."""
    images = [Image.open(path).convert("RGB") for path in paths]
    args = Namespace()
    args.image_aspect_ratio = "pad"
    tensor = process_images(images, vlmeval.processor, args).to("cpu", dtype=torch.float16) if images else None
    prompt = vlmeval_prompt(content)
    ids = tokenizer_image_token(prompt, vlmeval.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    stopping = KeywordsStoppingCriteria(["</s>"], vlmeval.tokenizer, ids)
    with torch.inference_mode():
        said = vlmeval.model.generate(
            ids,
            images=tensor,
            stopping_criteria=[stopping],
            do_sample=False,
            temperature=0,
            max_new_tokens=64,
            top_p=None,
            num_beams=1,
            use_cache=True,
        )
    return vlmeval.tokenizer.batch_decode(said, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("which", [[], [0], [0, 2], [0, 1]], ids=["none", "one", "of one size", "of two sizes"])
def test_vlmevalkit_generates_what_the_engine_does_on_its_prompt(
    vlmeval: Loaded, pictures: list[Image.Image], tmp_path: Path, which: list[int]
) -> None:
    shown, count = [pictures[i] for i in which], len(which)
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for path, picture in zip(paths, shown, strict=True):
        picture.save(path)
    greedy, engine = Sampling(temperature=0.0, max_new_tokens=64), vlmeval.engine()
    content = " <image> " * count + QUESTIONS[0]
    expected = "".join(engine.generate(vlmeval_prompt(content), shown, greedy)).strip()
    assert vlmeval_generate(vlmeval, content, paths) == expected
    engine.close()
