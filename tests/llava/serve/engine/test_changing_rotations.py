"""Rotary frequencies that depend on the longest row of a batch: each answer is the one that its request gets alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from llava.eval.run.likelihood import option_losses
from llava.model.builder import load_pretrained_model
from llava.model.vision.encoding import encode_prepared
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prefill import CHANGING_ROTATIONS, rotates_by_length
from llava.utils import demo_model_path
from tests.llava.serve.engine.engines import Hold
from tests.llava.serve.openai.serving import QUESTION

GREEDY = Sampling(temperature=0, max_new_tokens=6, logprobs=0)
CLIP = QLIPOptions(enabled=False)
TRAINED = 128  # positions
LONG = "Is there a ring? " * 40 + QUESTION  # takes more; QUESTION does not


@pytest.fixture(scope="module", params=CHANGING_ROTATIONS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatEngine]:
    """The embedded model with other frequencies, longer than it was trained for."""
    folder = tmp_path_factory.mktemp("model") / "llava-demo"
    shutil.copytree(demo_model_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    rotation = {"rope_type": "dynamic", "factor": 4.0}
    if request.param == "longrope":
        rotation = {"rope_type": "longrope", "short_factor": [1.0] * half, "long_factor": [4.0] * half, "factor": 4.0}
    rotation |= {"rope_theta": config.get("rope_theta", 10000.0), "original_max_position_embeddings": TRAINED}
    config |= {"rope_parameters": rotation, "max_position_embeddings": TRAINED}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer, model, processor, _ = load_pretrained_model(folder, device="cpu", qlip=True)
    made = ChatEngine(tokenizer, model, processor, 1024)
    yield made
    made.close()


def submit(engine: ChatEngine, picture: Image.Image, question: str) -> AnswerStream:
    return engine.submit(engine.question(question, 1), [picture], GREEDY, CLIP)


def read(answer: AnswerStream) -> tuple[str, list[float]]:
    return "".join(answer), [step.token.logprob for step in answer.row.logprobs]


def test_answers_beside_others_are_those_alone(engine: ChatEngine, hold: Hold, pictures: list[Image.Image]) -> None:
    assert rotates_by_length(engine.model)
    questions = (QUESTION, LONG, QUESTION)
    alone = {question: read(submit(engine, pictures[0], question)) for question in (QUESTION, LONG)}
    gate, _ = hold(engine)  # those queued after it are answered together, where they may be
    answers = [submit(engine, pictures[0], question) for question in questions]
    gate.opened.set()
    for answer, question in zip(answers, questions, strict=True):
        text, logprobs = alone[question]
        again, beside = read(answer)
        assert again == text
        torch.testing.assert_close(beside, logprobs, atol=1e-4, rtol=0)


def test_an_options_loss_does_not_depend_on_longer_ones(engine: ChatEngine, pictures: list[Image.Image]) -> None:
    prepared = engine.vision.prepare(pictures[0], engine.vision.settings(CLIP))
    with torch.inference_mode():
        (picture,) = encode_prepared(engine.model, [prepared])
    (alone,) = option_losses(engine, picture, QUESTION, ["a ring"])
    assert option_losses(engine, picture, QUESTION, ["a ring", "a purple ring and a square " * 8])[0] == alone
