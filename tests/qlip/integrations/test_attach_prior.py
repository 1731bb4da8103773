"""Which MLP prior an attached model gets: the one that was named, else the one that lies beside its checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, CLIPVisionModel, LlavaForConditionalGeneration, modeling_utils
from transformers.utils import hub

import qlip
from tests.qlip.integrations.models import (
    NATIVE,
    TREE,
    WIDTH,
    attached,
    make_contrastive_model,
    make_language_model,
    make_vision_model,
    picture,
)

MLP = {**TREE, "interpolation": "mlp"}
PRIOR = "prior.safetensors"


def write_prior(path, hidden: int) -> str:
    """Saves a prior that its `hidden` width tells apart from others; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    qlip.CoordinateMLP(WIDTH, hidden=hidden).save(path)
    return str(path)


def prior_of(model) -> int:
    """The width that tells an attached model's prior apart."""
    return model.attachment.vision.prior.layers[0].out_features


@pytest.fixture
def saved(tmp_path):
    """The folder of a model that was attached with a prior of 8; the working directory is another one."""
    model, _ = attached("llava", **MLP, mlp=write_prior(tmp_path / "mine.safetensors", 8))
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("form", ["keyword", "config"])
@pytest.mark.parametrize("path", ["relative", "absolute"])
def test_a_prior_that_is_named_is_used_though_another_lies_beside_the_checkpoint(
    saved, tmp_path, monkeypatch, form, path
):
    monkeypatch.chdir(tmp_path)
    absolute = write_prior(tmp_path / PRIOR, 16)
    mlp = PRIOR if path == "relative" else absolute
    given = {"mlp": mlp} if form == "keyword" else {"config": qlip.QLIPConfig(**MLP, mlp=mlp)}
    model, _ = qlip.attach(LlavaForConditionalGeneration.from_pretrained(saved), **given)
    assert prior_of(model) == 16
    assert model.config.qlip["mlp"] == absolute


def test_a_saved_prior_is_the_checkpoints_own_wherever_the_program_runs(saved, tmp_path, monkeypatch):
    write_prior(tmp_path / "elsewhere" / PRIOR, 16)
    monkeypatch.chdir(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained("saved")
    qlip.attach(model)
    assert prior_of(model) == 8
    monkeypatch.chdir(tmp_path / "elsewhere")
    qlip.attach(model, alpha=0.3)  # again, from where "saved" is no folder
    assert prior_of(model) == 8
    assert qlip.attach(LlavaForConditionalGeneration.from_pretrained(saved), alpha=0.3)[0].config.qlip["mlp"] == str(
        saved / PRIOR
    )


def test_a_prior_that_a_link_leads_to_is_read_as_in_the_cache_of_the_hub(saved, tmp_path):
    """Its files are links, named as in the checkpoint, to files that are named by their hashes."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, file in enumerate(saved.iterdir()):
        (snapshot / file.name).symlink_to(file.rename(tmp_path / f"{number:040x}"))
    assert prior_of(qlip.attach(LlavaForConditionalGeneration.from_pretrained(snapshot))[0]) == 8
    named, _ = attached("llava", **MLP, mlp=str(snapshot / PRIOR))
    assert prior_of(named) == 8


def test_a_named_prior_is_found_after_the_working_directory_changed(tmp_path, monkeypatch):
    write_prior(tmp_path / PRIOR, 16)
    monkeypatch.chdir(tmp_path)
    model, _ = attached("llava", **MLP, mlp=PRIOR)
    monkeypatch.chdir("/")
    qlip.attach(model, **{**model.config.qlip, "alpha": 0.3})
    assert prior_of(model) == 16


def test_a_prior_that_nothing_reads_is_refused_unless_the_settings_say_so(tmp_path):
    prior = write_prior(tmp_path / PRIOR, 16)
    model = make_vision_model("clip")
    with pytest.raises(ValueError, match="^mlp is '.*', but interpolation is 'bicubic'.* give interpolation='mlp'"):
        qlip.attach(model, mlp=prior)
    for given in ({"mlp": prior, "interpolation": "bilinear"}, {"config": qlip.QLIPConfig(mlp=prior)}):
        assert qlip.attach(model, **given)[0].attachment.vision.prior is None
    qlip.detach(model)
    model.config.qlip = {"mlp": prior, "interpolation": "bicubic"}
    assert qlip.attach(model, alpha=0.3)[0].attachment.vision.prior is None
    qlip.attach(model, interpolation="mlp")
    assert prior_of(model) == 16


def test_a_stray_prior_in_the_working_directory_is_not_that_of_a_model_of_the_hub(tmp_path, monkeypatch):
    write_prior(tmp_path / PRIOR, 16)
    monkeypatch.chdir(tmp_path)
    model = make_language_model("llava")
    model.config.qlip = {"interpolation": "mlp", "mlp": PRIOR}
    model.config._name_or_path = "somebody/on-the-hub"
    with pytest.raises(FileNotFoundError, match=r"no MLP prior at somebody/on-the-hub/prior\.safetensors; .* `mlp`$"):
        qlip.attach(model)
    assert prior_of(qlip.attach(model, mlp=PRIOR)[0]) == 16  # as the error says


@pytest.mark.parametrize("make", [make_vision_model, make_contrastive_model], ids=["vision model", "whole CLIP"])
@torch.no_grad()
def test_a_vision_model_is_loaded_with_the_settings_and_the_prior_that_were_saved(tmp_path, monkeypatch, make):
    model, processor = qlip.attach(make("clip"), **MLP, mlp=write_prior(tmp_path / "mine.safetensors", 8))
    model.save_pretrained(tmp_path / "saved")
    pixels = processor.preprocess([picture(112, 168, 1)], return_tensors="pt")["pixel_values"]
    expected = model.attachment.vision(pixels, pool=True)
    monkeypatch.chdir(tmp_path)
    for folder in ("saved", str(tmp_path / "saved")):
        tower = qlip.QLIPVisionModel.from_pretrained(folder, select_layer=-1)
        assert tower.qlip == qlip.QLIPConfig(**MLP, mlp=str(tmp_path / "saved" / PRIOR))
        assert torch.equal(tower(pixels, pool=True).pooled, expected.pooled)
    attached_again, _ = qlip.attach(AutoModel.from_pretrained("saved"))
    assert attached_again.attachment.vision.qlip == tower.qlip


@torch.no_grad()
def test_given_settings_replace_the_saved_ones_of_a_vision_model(tmp_path):
    model, _ = qlip.attach(make_vision_model("clip"), **MLP, mlp=write_prior(tmp_path / "mine.safetensors", 8))
    model.save_pretrained(tmp_path / "saved")
    uniform = qlip.QLIPConfig(alpha=0.0, max_tokens=None)
    tower = qlip.QLIPVisionModel.from_pretrained(str(tmp_path / "saved"), uniform, select_layer=-1)
    assert tower.qlip == uniform and tower.prior is None
    pixels = torch.randn(1, 3, NATIVE, NATIVE, generator=torch.Generator().manual_seed(0))
    plain = CLIPVisionModel.from_pretrained(tmp_path / "saved")(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(torch.stack(tower(pixels).features), plain, atol=1e-5, rtol=1e-4)


def test_a_vision_model_that_was_never_attached_is_loaded_with_the_defaults(tmp_path):
    make_vision_model("clip").save_pretrained(tmp_path)
    assert qlip.QLIPVisionModel.from_pretrained(str(tmp_path)).qlip == qlip.QLIPConfig()


@pytest.mark.parametrize("main", [True, False])
def test_one_process_of_several_writes_the_prior(tmp_path, main):
    model, _ = attached("llava", **MLP, mlp=write_prior(tmp_path / "mine.safetensors", 8))
    model.save_pretrained(tmp_path / "named", is_main_process=main)
    model.save_pretrained(tmp_path / "placed", main)
    assert [(tmp_path / name / PRIOR).exists() for name in ("named", "placed")] == [main, main]


def test_the_prior_is_pushed_to_the_hub_with_the_weights(tmp_path, monkeypatch):
    """As transformers chooses: what is newer than before it saved."""
    uploaded = []

    class Hub:
        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def create_commit(self, operations, **_):
            uploaded.extend(operation.path_in_repo for operation in operations)

    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    for module in (modeling_utils, hub):
        monkeypatch.setattr(module, "hf_api", Hub)
    monkeypatch.setattr(modeling_utils, "create_and_tag_model_card", lambda *_, **__: card)
    model, _ = attached("llava", **MLP, mlp=write_prior(tmp_path / "mine.safetensors", 8))
    model.save_pretrained(tmp_path / "saved", push_to_hub=True)
    assert {"config.json", "model.safetensors", PRIOR} <= set(uploaded)
