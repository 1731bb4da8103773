"""Models are saved whatever their generation_config.json holds, and what is saved transformers saves again."""

from __future__ import annotations

import json

import pytest
from transformers import GenerationConfig

from llava.model.builder import load_pretrained_model
from llava.model.generation_settings import drop_unused
from tests.llava.checkpoints import make_llava_checkpoint

VICUNA = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (VICUNA, {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096}),
        ({"do_sample": True, "temperature": 0.2, "top_k": 7}, {"do_sample": True, "temperature": 0.2, "top_k": 7}),
        ({"do_sample": False, "min_p": 0.1, "typical_p": 0.9}, {"do_sample": False}),
        ({"length_penalty": 2.0, "early_stopping": True}, {}),
        ({"num_beams": 3, "length_penalty": 2.0}, {"num_beams": 3, "length_penalty": 2.0}),
        ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}),
        ({"output_scores": True, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_what_has_no_effect_is_dropped_and_the_rest_passes_transformers_check(given, kept):
    settings = GenerationConfig(**given)
    before = settings.to_diff_dict()
    dropped = drop_unused(settings)
    dropped.validate(strict=True)
    found = dropped.to_diff_dict()
    found.pop("transformers_version", None)
    assert found == kept
    assert settings.to_diff_dict() == before


@pytest.mark.parametrize("settings", [None, {"temperature": 0.7, "do_sample": True}])
def test_an_answer_has_an_end_where_no_file_states_one(settings, tmp_path):
    """A published Llama's config.json may leave out what is its class's default; transformers 5 then has no end."""
    folder = make_llava_checkpoint(tmp_path / "model")
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer, model, *_ = load_pretrained_model(folder, device="cpu")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2


def test_the_end_that_a_file_states_is_kept(tmp_path):
    folder = make_llava_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_pretrained_model(folder, device="cpu")[1].generation_config.eos_token_id == [2, 7]


def test_a_model_whose_settings_have_changed_since_is_saved_and_keeps_them_meanwhile(tmp_path):
    """As with Vicuna's file: its padding token is not the tokenizer's, which the loaded settings name."""
    folder = make_llava_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({**VICUNA, "pad_token_id": 7}))
    model = load_pretrained_model(folder, device="cpu")[1]
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["max_length"] == 4096 and not {"temperature", "top_p"} & saved.keys()
    assert model.generation_config.temperature == 0.9
    GenerationConfig.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
