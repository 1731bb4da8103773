"""A checkpoint's parts: what transformers' own classes load computes what the checkpoint computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPVisionModel, LlamaForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.loading.tokenizer import load_tokenizer
from llava.utils import demo_model_path
from playground.model import DemoModel
from playground.parts import Parts, main


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "out"
    assert main(["--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def llava():
    return load_pretrained_model(demo_model_path(), device="cpu", qlip=False)[1]


@torch.no_grad()
def test_the_language_model_is_a_llama_with_the_same_logits(exported, llava):
    ids = torch.randint(3, 600, (2, 20), generator=torch.Generator().manual_seed(0))
    alone = LlamaForCausalLM.from_pretrained(exported / "language-model")
    torch.testing.assert_close(alone(ids).logits, llava(ids).logits)


@torch.no_grad()
def test_the_tower_is_a_clip_with_the_same_features(exported, llava):
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    alone = CLIPVisionModel.from_pretrained(exported / "tower")
    features = alone(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(features, torch.stack(list(llava.get_vision_tower()(pixels))))


def test_tokenizer_and_image_processor_are_beside_them(exported):
    text = "What colour is the circle?"
    ids = load_tokenizer(demo_model_path())(text).input_ids
    assert load_tokenizer(exported / "language-model")(text).input_ids == ids
    assert AutoTokenizer.from_pretrained(exported / "language-model")(text).input_ids == ids
    assert AutoImageProcessor.from_pretrained(exported / "tower").crop_size["height"] == 112


def test_parts_of_a_model_in_training_are_written_alike(model: DemoModel, tokenizer, exported, tmp_path):
    Parts(model.decoder, tokenizer, model.tower).save(tmp_path)
    names = {path.relative_to(exported) for path in exported.rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == names
    written = LlamaForCausalLM.from_pretrained(tmp_path / "language-model").state_dict()
    assert all(torch.equal(weight, written[name]) for name, weight in model.decoder.state_dict().items())


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["--out", str(tmp_path)]) == 2
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
