"""The recipe of LLaVA's two stages: a checkpoint that loads, from commands that llava.train runs, stopped or not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from playground import recipe
from playground.corpus import PIECES, sentences
from playground.model import LLAVA, QLIP_SETTINGS, DemoModel, llava_state_dict
from playground.recipe import LlavaRun, train_llava
from playground.schedules import CHECKPOINTS, PRETRAINING_SCHEDULES, RECIPES, LlavaSchedule, TrainingConfig
from playground.train import main
from playground.train_demo import train_demo
from playground.trainer import VOCABULARY

CHECKPOINT = CHECKPOINTS["llava"]
TINY = {
    "pretrain": LlavaSchedule(steps=2, rate=1e-3, batch=2),
    "finetune": LlavaSchedule(steps=2, rate=1e-3, batch=2),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of all stages, each of them a step or two."""
    out = tmp_path_factory.mktemp("recipe")
    config = TrainingConfig(out, scenes=6, steps_scale=1e-6, stages=RECIPES["llava"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "LLAVA_SCHEDULES", {name: replace(item, steps=2 * 10**6) for name, item in TINY.items()})
        patch.setattr(
            recipe,
            "PRETRAINING_SCHEDULES",
            {name: replace(item, batch=1 + index) for index, (name, item) in enumerate(PRETRAINING_SCHEDULES.items())},
        )
        patch.setattr(recipe, "sentences", lambda: sentences(100))  # a vocabulary of the same size, learnt sooner
        train_llava(config)
    return out


def test_the_result_is_laid_out_as_the_embedded_model(trained):
    names = {path.name for path in demo_model_path().iterdir()}
    assert {path.name for path in (trained / CHECKPOINT).iterdir()} == names
    weights = load_file(trained / CHECKPOINT / "model.safetensors")
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in llava_state_dict(DemoModel(PIECES, LLAVA)).items()
    }
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    ours, shipped = (
        json.loads((folder / "config.json").read_text()) for folder in (trained / CHECKPOINT, demo_model_path())
    )
    assert set(ours) == set(shipped)
    assert ours["hidden_size"] == ours["mm_vision_config"]["hidden_size"] == ours["mm_hidden_size"] == LLAVA.width
    assert ours["qlip"] == QLIP_SETTINGS


def test_the_losses_of_all_stages_are_drawn(trained):
    drawing = (trained / "loss.svg").read_text()
    assert all(f">{name}</text>" in drawing for name in RECIPES["llava"])


def test_training_pictures_hold_signs_and_are_no_squares(trained):
    samples = json.loads((trained / "data" / "conversations.json").read_text())
    sizes = {Image.open(trained / "data" / "images" / item["image"]).size for item in samples if "image" in item}
    assert len(sizes) > 1 and all(max(size) == 112 for size in sizes)
    assert all(2 <= len(item["conversations"]) // 2 <= 4 for item in samples)


def test_the_result_holds_what_stage_2_has_saved(trained):
    final, saved = (
        load_pretrained_model(trained / name, device="cpu", qlip=False)[1] for name in (CHECKPOINT, "finetune")
    )
    for (name, weight), (_, other) in zip(final.named_parameters(), saved.named_parameters(), strict=True):
        assert torch.equal(weight, other.half().float()), name


def test_stage_1_moves_the_projector_and_stage_2_the_decoder_but_not_the_tower(trained):
    parts, projector, final = (
        load_file(trained / "parts" / "language-model" / "model.safetensors"),
        torch.load(trained / "pretrain" / "mm_projector.bin", weights_only=True),
        load_file(trained / "finetune" / "model.safetensors"),
    )
    assert all(not torch.equal(weight, final[name]) for name, weight in parts.items() if "proj" in name)
    assert all(not torch.equal(weight, final[name]) for name, weight in projector.items())
    tower = load_file(trained / "parts" / "tower" / "model.safetensors")
    own = {name.split("vision_tower.vision_tower.")[1]: weight for name, weight in final.items() if "tower" in name}
    assert own and all(
        torch.equal(weight, tower.get(name, tower.get(name.removeprefix("vision_model."))))
        for name, weight in own.items()
    )


def test_a_stage_that_is_done_is_not_run_again(trained, monkeypatch):
    monkeypatch.setattr(recipe, "llava_train", lambda argv: pytest.fail("trained again"))
    run = LlavaRun(trained)
    run.train("pretrain", TINY["pretrain"])
    LlavaRun(trained, workers=7).train("pretrain", TINY["pretrain"])  # on a machine with more cores
    with pytest.raises(ValueError, match=r"pretrain holds a run without --max_steps=3; remove it"):
        run.train("pretrain", replace(TINY["pretrain"], steps=3))


def test_a_stage_that_was_stopped_is_run_again_with_the_same_flags(tmp_path, monkeypatch, capsys):
    commands = []

    def stop(argv):
        commands.append(argv)
        if len(commands) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "llava_train", stop)
    run = LlavaRun(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.train("finetune", TINY["finetune"])
    run.train("finetune", TINY["finetune"])
    run.train("finetune", TINY["finetune"])
    assert len(commands) == 2 and commands[0] == commands[1]
    assert capsys.readouterr().out.count(f"python -m llava.train.train {commands[0][0]}") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stages", "pretrain"], "stage language is at step 0 of 1; pretrain needs it done"),
        (["--stages", "joint"], "unknown stages ['joint'] of the recipe llava; allowed: language, vision, pretrain"),
    ],
)
def test_stages_that_cannot_be_run_are_named(trained, tmp_path, capsys, flags, message):
    shutil.copytree(trained / VOCABULARY, tmp_path / VOCABULARY)
    sizes = ["--scenes", "2", "--steps-scale", "1e-6", "--threads", "1"]
    assert main(["--out", str(tmp_path), "--recipe", "llava", *sizes, *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_demo_trains_and_prints_what_has_changed(tmp_path, capsys):
    train_demo(tmp_path, {name: replace(item, steps=1) for name, item in TINY.items()}, seed=0, examined=1)
    printed = capsys.readouterr().out
    assert printed.count("python -m llava.train.train --model_name_or_path=") == 2
    assert printed.count("right:") == printed.count("before:") == printed.count("after:") == 3
    assert "right answers about 1 images: " in printed
    assert f"--image-file {tmp_path / 'held-out.png'}" in printed and (tmp_path / "held-out.png").is_file()
    assert ">pretrain</text>" in (tmp_path / "loss.svg").read_text()
