"""A run from its command line: what it logs, evaluates, leaves out and refuses."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.train.train import train
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import flags, logged, train_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iitiittit")
    return folder


def test_a_step_logs_its_loss_rates_and_counts(bases, data, tmp_path):
    train_on(bases / "llava", data, tmp_path, report_to="tensorboard")
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "samples_per_second",
        "text_tokens_per_second",
        "visual_tokens_per_second",
        "target_tokens_per_second",
        "padding_share",
        "target_tokens",
        "dropped_samples",
        "memory_gib",
    } <= set(history[0])
    assert len(logged(tmp_path)) == 3
    assert list(tmp_path.glob("runs/*/events*"))


def test_a_text_only_model_is_trained_too(bases, data, tmp_path):
    shutil.copytree(data, tmp_path / "text")
    samples = [row for row in json.loads((data / "data.json").read_text()) if "image" not in row]
    (tmp_path / "text" / "data.json").write_text(json.dumps(samples))
    train_on(bases / "vicuna", tmp_path / "text", tmp_path / "out")
    assert len(logged(tmp_path / "out")) == 1
    tokenizer, model, processor, _ = load_pretrained_model(tmp_path / "out", device="cpu")
    assert processor is None and model.get_vision_tower() is None


@pytest.mark.parametrize(("flag", "default", "used"), [("eager", "sdpa", "eager"), (None, "eager", "eager")])
def test_the_flag_of_attention_wins_over_a_commands_default(bases, data, tmp_path, flag, default, used):
    """As those of train_mem and train_xformers are."""
    trainer = train(default, flags(bases / "llava", data, tmp_path, max_steps=1, attn_implementation=flag))
    assert trainer.model.config._attn_implementation == used


ONE_STEP = {"max_steps": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_projector_is_trained_below_a_quantised_language_model(bases, data, tmp_path, bits):
    train_on(bases / "llava", data, tmp_path, tune_mm_mlp_adapter=True, bits=bits, bf16=True, **ONE_STEP)
    before, after = torch.load(bases / "mm_projector.bin"), torch.load(tmp_path / "mm_projector.bin")
    assert not any(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix in (".bin", ".safetensors")) == [
        "mm_projector.bin"
    ]


@pytest.mark.parametrize("changes", [{}, {"lora_enable": True}])
def test_a_base_that_names_no_padding_token_is_trained_and_saved(bases, data, tmp_path, changes):
    shutil.copytree(bases / "llava", tmp_path / "base")
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1, "temperature": 0.9}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    train_on(tmp_path / "base", data, tmp_path / "out", max_steps=1, **changes)
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_tower_is_trained_in_mixed_precision(bases, data, tmp_path):
    """Also where transformers' tower runs its last layer and norm, which nobody reads."""
    trainer = train_on(bases / "llava", data, tmp_path, unfreeze_mm_vision_tower=True, bf16=True, max_steps=1)
    tower = trainer.model.get_vision_tower()
    assert {weight.dtype for weight in tower.parameters()} == {torch.float32}
    assert len({weight.requires_grad for weight in tower.parameters()}) == 2


def test_the_evaluations_loss_is_the_mean_of_all_target_tokens(bases, data, tmp_path):
    """Whatever the batches; by hand it is the sum over samples, each alone, through the saved model."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "eval_data_path": data / "data.json", **ONE_STEP}
    trainer = train_on(bases / "llava", data, tmp_path / "by4", **evaluated, per_device_eval_batch_size=4)
    train_on(bases / "llava", data, tmp_path / "by1", **evaluated, per_device_eval_batch_size=1)
    (loss,) = logged(tmp_path / "by4", "eval_loss")
    assert logged(tmp_path / "by1", "eval_loss") == pytest.approx([loss], abs=1e-5)
    model = load_pretrained_model(tmp_path / "by4", device="cpu")[1].eval()
    total, count = 0.0, 0
    for item in (trainer.eval_dataset[i] for i in range(9)):
        targets = int((item["labels"] != -100).sum())
        images = torch.stack(item["images"]) if item["images"] else None
        with torch.no_grad():
            mean = model(item["input_ids"][None], labels=item["labels"][None], images=images).loss
        total, count = total + targets * mean.item(), count + targets
    assert loss == pytest.approx(total / count, abs=1e-4)
    assert logged(tmp_path / "by4", "eval_target_tokens") == [count]


def break_images(data: Path, to: Path, count: int) -> Path:
    shutil.copytree(data, to)
    for file in sorted(to.glob("*.png"))[:count]:
        file.write_bytes(file.read_bytes()[:100])
    return to


def test_unreadable_images_are_left_out_up_to_a_number(bases, data, tmp_path, caplog):
    broken = break_images(data, tmp_path / "broken", 2)
    with caplog.at_level(logging.WARNING):
        train_on(bases / "llava", broken, tmp_path / "out", max_bad_samples=2)
    assert logged(tmp_path / "out", "dropped_samples")[-1] == 2
    used = len(json.loads((data / "data.json").read_text())) - 2
    assert (
        f"samples were left out 2 times, in every epoch again, and used {used} times; 2 of them are malformed"
        in caplog.text
    )
    with pytest.raises(ValueError, match="--max_bad_samples allows 1") as error:
        train_on(bases / "llava", broken, tmp_path / "ended", max_bad_samples=1)
    assert "data.json: sample 0" in str(error.value) and "0.png" in str(error.value)


def test_malformed_samples_and_unreadable_images_are_counted_together(bases, data, tmp_path):
    broken = break_images(data, tmp_path / "broken", 1)
    samples = json.loads((data / "data.json").read_text())
    (broken / "data.json").write_text(json.dumps([*samples, {"id": "x", "conversations": []}]))
    train_on(bases / "llava", broken, tmp_path / "out", max_bad_samples=2)
    assert logged(tmp_path / "out", "dropped_samples")[-1] == 2
    with pytest.raises(ValueError, match="2 samples cannot be used, and --max_bad_samples allows 1"):
        train_on(bases / "llava", broken, tmp_path / "ended", max_bad_samples=1)


def test_a_step_of_which_nothing_can_be_used_changes_nothing(bases, data, tmp_path):
    broken = break_images(data, tmp_path / "broken", 9)
    samples = json.loads((data / "data.json").read_text())
    (broken / "data.json").write_text(json.dumps(sorted(samples, key=lambda row: "image" not in row)))
    train_on(bases / "llava", broken, tmp_path / "out", lora_enable=True)
    assert logged(tmp_path / "out", "grad_norm")[0] == 0.0 < logged(tmp_path / "out", "grad_norm")[1]
    assert logged(tmp_path / "out")[0] == 0.0


def test_a_run_or_an_evaluation_without_usable_samples_is_an_error(bases, data, tmp_path):
    reason = (
        "no sample could be trained on; samples were left out 9 times .* 0 of them are malformed or unreadable, any"
    )
    with pytest.raises(ValueError, match=reason):
        train_on(bases / "llava", data, tmp_path / "out", model_max_length=40, save_strategy="steps", save_steps=1)
    assert not list(tmp_path.glob("out/checkpoint*"))
    with pytest.raises(ValueError, match="none of the 9 samples can be used, 9 of them too long, for example .*ple 0"):
        train_on(bases / "llava", data, tmp_path / "tokens", model_max_length=40, batch_tokens=200)
    assert not list(tmp_path.glob("tokens/*"))
    text_only = tmp_path / "text.json"
    samples = json.loads((data / "data.json").read_text())
    text_only.write_text(json.dumps([row for row in samples if "image" not in row]))
    (tmp_path / "held_out.json").write_text(json.dumps([row for row in samples if "image" in row]))
    held_out = {"eval_strategy": "epoch", "eval_data_path": tmp_path / "held_out.json", "eval_image_folder": tmp_path}
    with pytest.raises(ValueError, match=r"of the evaluation \(--eval_data_path\) can be used: .*no such image file"):
        train_on(bases / "llava", data, tmp_path / "evaluated", data_path=text_only, **held_out)
    with pytest.raises(ValueError, match="no sample of --data_path has an image"):
        train_on(bases / "llava", data, tmp_path / "evaluated", data_path=text_only, tune_mm_mlp_adapter=True)
    few = {"dataloader_drop_last": True, "per_device_train_batch_size": 10}
    with pytest.raises(ValueError, match="leaves out all 9 samples, since a batch of all processes has 10"):
        train_on(bases / "llava", data, tmp_path / "evaluated", **few)
    assert not list(tmp_path.glob("evaluated/*"))  # nothing was trained before


def test_grouping_by_length_opens_no_image_and_takes_unreadable_ones(bases, data, tmp_path):
    broken = break_images(data, tmp_path / "broken", 2)
    train_on(bases / "llava", broken, tmp_path / "out", train_sampling_strategy="group_by_length")
    assert logged(tmp_path / "out", "dropped_samples")[-1] == 2


def test_text_that_is_too_long_is_cut_and_images_never(bases, data, tmp_path):
    """Cut by one token, the longest sample loses its last target; cut to its question, or its image, it is left out."""
    dataset = train_on(bases / "llava", data, tmp_path / "whole").train_dataset
    items = [dataset[i] for i in range(len(dataset))]
    lengths = [len(item["input_ids"]) - len(item["images"]) + item["visual_tokens"] for item in items]
    longest = items[lengths.index(max(lengths))]
    targets = int((longest["labels"] != -100).sum())
    train_on(bases / "llava", data, tmp_path / "cut", model_max_length=max(lengths) - 1)
    whole, cut = (logged(tmp_path / name, "target_tokens")[-1] for name in ("whole", "cut"))
    assert cut == whole - 1 and logged(tmp_path / "cut", "dropped_samples")[-1] == 0
    limit = max(lengths) - targets
    too_long = [
        length - int((item["labels"] != -100).sum()) >= limit for item, length in zip(items, lengths, strict=True)
    ]
    train_on(bases / "llava", data, tmp_path / "short", model_max_length=limit)
    assert logged(tmp_path / "short", "dropped_samples")[-1] == sum(too_long) > 0
