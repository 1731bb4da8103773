"""Training on LLaVA-1.6's tiles: its flags, its loss by transformers' LlavaNext, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from tests.llava.checkpoints import IMAGE_TOKEN
from tests.llava.next_checkpoints import PINPOINTS, make_next_checkpoint, next_model, oracle_inputs
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import train_on

TILES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": str(PINPOINTS),
}
PARTS = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "model_max_length": 1024}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iit")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture
def build(bases):
    def build(**flags):
        chosen = {"output_dir": "out", "data_path": "data.json", "use_cpu": True, "report_to": "none", "version": "v1"}
        chosen |= {"model_name_or_path": bases / "vicuna", "vision_tower": bases / "clip", **PARTS, **flags}
        argv = [part for name, value in chosen.items() if value is not None for part in (f"--{name}", str(value))]
        return assemble(parse_arguments(argv))[1]

    return build


@torch.no_grad()
def oracle_loss(items) -> float:
    """The mean loss of the samples' target tokens, each through LlavaNext alone."""
    oracle, total, count = next_model(), 0.0, 0
    for item in items:
        if item["images"]:
            inputs = oracle_inputs(oracle, [item["input_ids"].tolist()], item["images"], item["image_sizes"])
        else:
            inputs = {"input_ids": item["input_ids"][None]}
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[inputs["input_ids"] != IMAGE_TOKEN] = item["labels"][item["input_ids"] >= 0]
        logits = oracle(**inputs).logits[0, :-1]
        total += F.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
        count += int((labels[:, 1:] != -100).sum())
    return total / count


def test_a_steps_loss_is_llava_nexts_and_the_newline_is_trained(checkpoint, data, tmp_path):
    """From a checkpoint, whose own tiles hold without a flag; a batch of two images and a text."""
    trainer = train_on(checkpoint, data, tmp_path, model_max_length=1024)
    (loss,) = (line["loss"] for line in trainer.state.log_history if "loss" in line)
    assert loss == pytest.approx(oracle_loss([trainer.train_dataset[i] for i in range(3)]), abs=1e-4)
    _, model, _, _ = load_pretrained_model(tmp_path, device="cpu")
    assert (model.config.image_aspect_ratio, model.config.image_grid_pinpoints) == ("anyres", PINPOINTS)
    assert not torch.equal(model.model.image_newline, next_model().model.image_newline)


def test_a_checkpoint_without_tiles_is_trained_on_them(bases, data, tmp_path):
    """LLaVA-1.5's has no newline: one is drawn, trained and saved, and the rest is the checkpoint's own."""
    trainer = train_on(bases / "llava", data, tmp_path, model_max_length=1024, **TILES)
    assert all(len(image) > 1 for item in (trainer.train_dataset[i] for i in (0, 1)) for image in item["images"])
    _, model, _, _ = load_pretrained_model(tmp_path, device="cpu")
    newline = model.model.image_newline.detach()
    assert (model.config.image_aspect_ratio, model.config.mm_patch_merge_type) == ("anyres", "spatial_unpad")
    assert torch.isfinite(newline).all() and newline.std() == pytest.approx(len(newline) ** -0.5, rel=0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("tiling", ["image", "tiles"])
def test_a_quadtree_in_place_of_tiles_is_trained_with(data, tmp_path, tiling):
    """The loss is that of the answers which the checkpoint gives, whose own settings hold without a flag."""
    checkpoint = make_next_checkpoint(tmp_path / "next", qlip={"tiling": tiling, "max_tokens": 60})
    trainer = train_on(checkpoint, data, tmp_path / "out", model_max_length=1024)
    (loss,) = (line["loss"] for line in trainer.state.log_history if "loss" in line)
    _, model, _, _ = load_pretrained_model(checkpoint, device="cpu")
    total, count = 0.0, 0
    for item in (trainer.train_dataset[i] for i in range(3)):
        ids, labels = item["input_ids"][None], item["labels"][None]
        given = {"images": item["images"], "image_sizes": item["image_sizes"]} if item["images"] else {}
        targets = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(ids, labels=labels, **given).loss.item() * targets
        count += targets
    assert loss == pytest.approx(total / count, abs=1e-4)
    assert load_pretrained_model(tmp_path / "out", device="cpu")[1].get_vision_tower().settings.tiling == tiling


@pytest.mark.parametrize(
    ("mode", "file", "name"),
    [
        ("tune_mm_mlp_adapter", "mm_projector.bin", "model.image_newline"),
        ("lora_enable", "non_lora_trainables.bin", "base_model.model.model.image_newline"),
    ],
)
def test_a_newline_that_is_trained_with_the_projector_is_saved_beside_it(bases, data, tmp_path, mode, file, name):
    parts = {**PARTS, "vision_tower": bases / "clip", "pretrain_mm_mlp_adapter": bases / "mm_projector.bin"}
    trainer = train_on(bases / "vicuna", data, tmp_path, **parts, **TILES, **{mode: True})
    saved = torch.load(tmp_path / file)[name]
    item = trainer.train_dataset[0]
    _, model, _, _ = load_pretrained_model(tmp_path, bases / "vicuna", device="cpu")
    assert torch.equal(model.model.image_newline, saved)
    inputs = {"images": item["images"], "image_sizes": item["image_sizes"]}
    with torch.no_grad():
        got = model(item["input_ids"][None], **inputs).logits
        expected = trainer.model.eval()(input_ids=item["input_ids"][None], **inputs).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({}, True),
        ({"tune_mm_mlp_adapter": True}, True),
        ({"lora_enable": True}, True),
        ({"freeze_mm_mlp_adapter": True}, False),
    ],
    ids=str,
)
def test_the_newline_is_trained_where_the_projector_is(build, flags, trained):
    model = build(**TILES, **flags)
    assert model.get_model().image_newline.requires_grad is trained
    assert all(weight.requires_grad is trained for weight in model.get_model().mm_projector.parameters())


def test_config_json_has_the_resolutions_in_pixels(build):
    config = build(**{**TILES, "image_grid_pinpoints": "(1x1),...,(2x2)"}).config
    values = json.loads(config.to_json_string())
    assert values["image_grid_pinpoints"] == [[112, 112], [112, 224], [224, 112], [224, 224]]
    assert (values["image_aspect_ratio"], values["mm_patch_merge_type"]) == ("anyres", "spatial_unpad")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints is None; allowed are a list"),
        ({"image_grid_pinpoints": "[[112, 100]]"}, r"holds \[112, 100\]; allowed are multiples of a tile's 112 pixels"),
        (
            {"image_aspect_ratio": "pad"},
            "--mm_patch_merge_type spatial_unpad joins tiles, which --image_aspect_ratio pad",
        ),
        ({"mm_vision_select_feature": "cls_patch"}, "with mm_patch_merge_type 'spatial_unpad' only 'patch'"),
        ({"qlip": True, "mm_patch_merge_type": "flat"}, "qlip takes the place of tiles only where .* 'spatial_unpad'"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_refused(build, flags, message):
    with pytest.raises(ValueError, match=message):
        build(**{**TILES, **flags})
