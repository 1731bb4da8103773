"""Exact match in training equals asking each question by itself, and leaves training as it was."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from PIL import Image

from llava.conversation import conv_templates
from llava.eval.run.answerer import same_answer
from llava.eval.run.inputs.questions import Question
from llava.model.builder import load_pretrained_model
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.train import evaluation
from llava.train.evaluation import QuestionEvaluation, read_questions, refuse_sharded_weights, unwrap_model
from llava.train.train import train
from llava.utils import demo_model_path
from playground.presets import PRESETS
from playground.questions import scene_questions
from playground.scenes import scene
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.train.handwritten import write_data

KINDS = ("colour", "shape", "count", "relation")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about three scenes with their images; of every four answers, one is made wrong."""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for index in range(3):
        made = scene(PRESETS["detail"], 77, index)
        Image.fromarray(made.image).save(folder / f"{index}.png")
        asked = scene_questions(made.objects, PRESETS["detail"].size, np.random.default_rng(index), KINDS)
        for number, item in enumerate(asked):
            answer = "neither" if number == 0 else item.answer.upper() + "."
            rows.append({"question_id": len(rows), "image": f"{index}.png", "text": item.text, "answer": answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


@pytest.fixture(scope="module")
def questions(file: Path) -> list[Question]:
    return read_questions(file, file.parent)


@pytest.fixture(scope="module")
def engine() -> ChatEngine:
    return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu"))


@pytest.fixture
def model(engine: ChatEngine) -> Any:
    """The embedded model in the state of training: dropout on, no cache, everything trainable but the tower."""
    engine.model.train().config.use_cache = False
    return engine.model


def make_evaluation(engine: ChatEngine, questions: list[Question], **options: Any) -> QuestionEvaluation:
    preparer = Preparer.of(engine.model.get_vision_tower())
    return QuestionEvaluation(questions, engine.tokenizer, preparer, conv_templates["v1"], **options)


def asked_singly(engine: ChatEngine, questions: list[Question]) -> list[bool]:
    """Whether each answer is right, by the engine of all front ends."""
    engine.model.eval()
    images = [Image.open(str(question.image)).convert("RGB") for question in questions]
    said = [engine.ask(question.text, [image]) for question, image in zip(questions, images, strict=True)]
    return [same_answer(text, str(question.answer)) for text, question in zip(said, questions, strict=True)]


@pytest.mark.parametrize("qlip", [True, False], ids=["qlip", "clip"])
def test_exact_match_is_the_share_of_right_answers(questions, qlip):
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=qlip))
    right = asked_singly(engine, questions)
    assert 0 < sum(right) < len(right) == 12
    engine.model.train()
    result = make_evaluation(engine, questions)(engine.model)
    assert result == {"eval_exact_match": pytest.approx(100 * sum(right) / 12)}


def test_the_engine_that_answers_logs_no_flags_of_servers(engine, model, questions, caplog):
    caplog.set_level(logging.INFO)
    make_evaluation(engine, questions[:1])(model)
    assert "--prefix-cache-mib" not in caplog.text
    assert logging.getLogger("llava.serve").getEffectiveLevel() == logging.INFO


def test_processes_share_the_questions(engine, model, questions):
    parts, questions = [], questions[:4]

    def gather(right: int) -> list[int]:
        parts.append(right)
        return parts

    whole = make_evaluation(engine, questions)(model, "test")["test_exact_match"]
    for rank in range(3):
        result = make_evaluation(engine, questions, rank=rank, world_size=3, gather=gather)(model)
    assert result["eval_exact_match"] == pytest.approx(whole)
    assert 0 < 100 * sum(parts) / 4 == pytest.approx(whole)


def test_the_wrappers_of_training_change_no_answer(engine, model, questions):
    """LoRA adapters start at zero; accelerate's mixed precision stays in place for the next step."""
    plain = make_evaluation(engine, questions)(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], exclude_modules=".*vision_tower.*"))
    try:
        assert unwrap_model(wrapped) is model
        assert make_evaluation(engine, questions)(wrapped) == plain
    finally:
        wrapped.unload()
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's precision, as transformers resets it
    Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    forward = model.forward
    try:
        result = make_evaluation(engine, questions, dtype=torch.bfloat16)(model)
        assert result["eval_exact_match"] == pytest.approx(plain["eval_exact_match"], abs=10)
        assert model.forward is forward
    finally:
        model.forward = model.__dict__.pop("_original_forward")


def test_training_continues_as_if_nothing_had_been_asked(engine, model, questions):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.requires_grad_(True)
    model.model.mm_projector.eval()
    modes = [module.training for module in model.modules()]
    ids = torch.tensor([[1, 20, 30, -200, 31, 40]])
    image = Preparer.of(model.get_vision_tower())(questions[0].image).image

    def step() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = model(ids, labels=ids, images=[image]).loss
        loss.backward()
        return loss.item(), model.model.mm_projector[0].weight.grad.clone()

    loss, gradient = step()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    make_evaluation(engine, questions[:2])(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    again, gradient_again = step()
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    assert again == loss and torch.equal(gradient_again, gradient)
    assert model.config.use_cache is False


def test_a_question_without_an_answer_is_wrong_and_logged(engine, model, questions, tmp_path, caplog):
    whole = Path(str(questions[1].image)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    broken = Question("cut", "?", "Is there a circle?", tmp_path / "cut.png", answer="yes")
    long = Question("long", "?", "Is there a circle? " * 1000, questions[0].image, answer="yes")
    with caplog.at_level(logging.WARNING):
        assert make_evaluation(engine, [broken, long])(model) == {"eval_exact_match": 0.0}
    logged = caplog.text
    assert "question 'cut' has no answer" in logged
    assert "question 'long' has no answer" in logged and "exceed the model's context" in logged


class TestArguments:
    def data_args(self, file: Path, **changes: Any) -> SimpleNamespace:
        preparer, template = object(), conv_templates["plain"]
        values = {"eval_questions": str(file), "image_folder": str(file.parent), "eval_image_folder": None}
        return SimpleNamespace(**{**values, "preparer": preparer, "template": template, **changes})

    def training_args(self, **changes: Any) -> SimpleNamespace:
        values = {"compute_dtype": torch.bfloat16, "dataloader_num_workers": 2, "process_index": 1, "world_size": 3}
        return SimpleNamespace(**{**values, "fsdp": [], **changes})

    def test_they_decide_what_is_asked(self, file):
        built = QuestionEvaluation.of(self.data_args(file), self.training_args(), "tokenizer")
        assert built is not None
        assert (built.total, len(built.questions)) == (12, 4)
        assert (built.dtype, built.workers, built.conv_mode) == (torch.bfloat16, 2, "plain")

    def test_nothing_is_asked_unless_a_file_is_named(self, file):
        assert QuestionEvaluation.of(self.data_args(file, eval_questions=None), self.training_args(), None) is None

    def test_the_evaluation_may_have_its_own_images(self, file, tmp_path):
        shutil.copytree(file.parent, tmp_path / "own")
        data = self.data_args(file, image_folder="/nowhere", eval_image_folder=str(tmp_path / "own"))
        assert QuestionEvaluation.of(data, self.training_args(), None) is not None

    @pytest.mark.parametrize(
        ("data", "training", "parts"),
        [
            ({"preparer": None}, {}, ["no tower", "--vision_tower"]),
            ({"eval_questions": "/nowhere.jsonl"}, {}, ["no file /nowhere.jsonl", "--eval_questions"]),
            ({"image_folder": "/nowhere"}, {}, ["no image folder /nowhere", "name it with --image_folder"]),
            ({"eval_image_folder": "/nowhere"}, {}, ["no image folder /nowhere", "--eval_image_folder"]),
            ({}, {"fsdp": ["full_shard"]}, ["FSDP shards them", "zero2.json", "--eval_data_path"]),
        ],
    )
    def test_what_cannot_work_is_refused_at_the_start(self, file, data, training, parts):
        with pytest.raises(ValueError) as error:
            QuestionEvaluation.of(self.data_args(file, **data), self.training_args(**training), None)
        assert [part for part in parts if part not in str(error.value)] == []

    def test_zero_3_is_refused(self, monkeypatch):
        monkeypatch.setattr(evaluation, "is_deepspeed_zero3_enabled", lambda: True)
        with pytest.raises(ValueError, match="ZeRO-3 shards them"):
            refuse_sharded_weights(self.training_args())


def test_a_question_must_have_an_answer(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 7, "image": "0.png", "text": "?"}\n')
    with pytest.raises(ValueError, match="q.jsonl: question 7 has no right answer"):
        read_questions(tmp_path / "q.jsonl", tmp_path)


def test_a_broken_image_is_named(file, tmp_path):
    (tmp_path / "0.png").write_text("no image")
    for name in ("1.png", "2.png"):
        shutil.copy(file.parent / name, tmp_path)
    with pytest.raises(ValueError, match=r"1 of 3 images .*0\.png: not a readable image.*check --eval_image_folder"):
        read_questions(file, tmp_path)


def test_a_run_asks_at_every_evaluation_and_trains_as_without(tmp_path):
    """Projector-only training of a small random model, which answers nothing right."""
    make_llava_checkpoint(tmp_path / "model")
    samples = write_data(tmp_path / "data", "iitit")
    rows = [
        {"question_id": sample["id"], "image": sample["image"], "text": "what is it?", "answer": "a circle"}
        for sample in samples
        if "image" in sample
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--version", "v1", "--tune_mm_mlp_adapter", "True"]
    flags += ["--data_path", str(tmp_path / "data" / "data.json"), "--image_folder", str(tmp_path / "data")]
    flags += ["--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--save_strategy", "no"]
    flags += ["--mm_use_im_patch_token", "False", "--report_to", "none", "--use_cpu", "True"]
    asked = [*flags, "--eval_strategy", "steps", "--eval_steps", "1", "--eval_questions", str(file)]
    with_questions = train(argv=[*asked, "--output_dir", str(tmp_path / "a")]).state.log_history
    without = train(argv=[*flags, "--output_dir", str(tmp_path / "b")]).state.log_history
    assert [line["eval_exact_match"] for line in with_questions if "eval_exact_match" in line] == [0.0, 0.0]
    assert not any("eval_loss" in line for line in with_questions)  # for which there are no samples
    losses = [[line["loss"] for line in log if "loss" in line] for log in (with_questions, without)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
