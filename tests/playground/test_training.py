"""Training: every stage moves its own parts, and a run that was stopped ends with the same weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from playground import trainer
from playground.model import DemoModel, llava_state_dict, save_checkpoint
from playground.packing import Packer
from playground.schedules import CHECKPOINTS, SCHEDULES, Schedule, TrainingConfig
from playground.stages import DecoderStage, JointStage, Readout, Surroundings, Symbols, TowerStage
from playground.trainer import Trainer, open_vocabulary, train
from playground.vocabulary import train_vocabulary


@pytest.fixture
def around(scenes, tokenizer):
    return Surroundings(scenes, Packer(tokenizer), seed=0, batch=2, device=torch.device("cpu"))


def build(name, tokenizer, around):
    torch.manual_seed(0)
    model, symbols, readout = DemoModel(len(tokenizer)), Symbols(), Readout()
    stages = {
        "decoder": lambda: DecoderStage(model, symbols, around),
        "tower": lambda: TowerStage(model, readout, around),
        "joint": lambda: JointStage(model, symbols, readout, around),
    }
    return stages[name]()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stopped_run_ends_with_the_same_weights(name, tokenizer, around, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    schedule = Schedule(steps=2, rate=1e-3, warmup=1)
    whole = build(name, tokenizer, around)
    Trainer(name, whole, schedule, TrainingConfig(out=straight)).run()

    first = Trainer(name, build(name, tokenizer, around), schedule, TrainingConfig(out=stopped))
    first.advance()
    first.save()
    second = build(name, tokenizer, around)
    Trainer(name, second, schedule, TrainingConfig(out=stopped)).run()
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[key]), key


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stage_trains_all_its_parameters(name, tokenizer, around, tmp_path):
    stage = build(name, tokenizer, around)
    loss, _ = stage.loss(0, 0.0)
    loss.backward()
    still = [name for name, weight in stage.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A key's bias shifts all logits of a query alike: its gradient is zero but for rounding.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


def test_the_command_leaves_a_checkpoint(tmp_path, monkeypatch):
    small = {name: replace(schedule, batch=2) for name, schedule in SCHEDULES.items()}
    monkeypatch.setattr(trainer, "SCHEDULES", small)
    train(TrainingConfig(out=tmp_path, scenes=4, steps_scale=1e-6))
    assert {path.name for path in (tmp_path / CHECKPOINTS["joint"]).iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def test_the_joint_stage_needs_the_others_done(tmp_path):
    with pytest.raises(ValueError, match="decoder is at step 0 of 1"):
        train(TrainingConfig(out=tmp_path, scenes=2, steps_scale=1e-6, stages=("joint",)))


def test_unknown_stages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="polish.*joint"):
        train(TrainingConfig(out=tmp_path, stages=("polish",)))


def test_a_checkpoint_is_in_llavas_format(model, vocabulary, tmp_path):
    save_checkpoint(model, vocabulary, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    tower = "model.vision_tower.vision_tower.vision_model."
    assert {
        "model.embed_tokens.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        tower + "embeddings.class_embedding",
        tower + "embeddings.patch_embedding.weight",
        tower + "embeddings.position_embedding.weight",
        tower + "pre_layrnorm.weight",
        tower + "encoder.layers.4.mlp.fc2.bias",
        tower + "post_layernorm.bias",
    } <= set(weights)
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert len(weights) == sum(1 for _ in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 5e6
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert config["mm_vision_config"]["image_size"] == 112
    assert config["mm_projector_type"] == "mlp2x_gelu"


def test_the_state_dict_holds_every_weight_once(model):
    assert sum(weight.numel() for weight in llava_state_dict(model).values()) == sum(
        weight.numel() for weight in model.parameters()
    )


@pytest.mark.parametrize(("change", "words"), [({"seed": 1}, "seed 0, .* has 1"), ({"scenes": 5}, "scenes 4, .* 5")])
def test_progress_of_another_run_is_not_continued(tokenizer, around, tmp_path, change, words):
    schedule = Schedule(steps=2, rate=1e-3, warmup=1)
    values = {"out": tmp_path, "seed": 0, "scenes": 4}
    Trainer("decoder", build("decoder", tokenizer, around), schedule, TrainingConfig(**values)).save()
    other = Trainer("decoder", build("decoder", tokenizer, around), schedule, TrainingConfig(**values | change))
    with pytest.raises(ValueError, match=rf"decoder\.pt holds progress with {words}; repeat its flags"):
        other.run()


def test_the_vocabulary_of_another_recipe_is_not_taken(tmp_path):
    open_vocabulary(tmp_path, "joint", train_vocabulary)
    open_vocabulary(tmp_path, "joint", lambda folder: pytest.fail("trained twice"))
    with pytest.raises(ValueError, match="vocabulary is of the recipe 'joint', this run's is 'llava'"):
        open_vocabulary(tmp_path, "llava", train_vocabulary)
