"""`import llava` makes LLaVA's model types known to transformers, whichever is imported first, and loads nothing."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerBase,
)
from transformers import LlavaConfig as TransformersLlavaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import llava
import llava.model
from llava.auto_classes import register_lazily
from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaMistralConfig,
    LlavaMistralForCausalLM,
    LlavaMptConfig,
    LlavaQwenConfig,
    LlavaQwenForCausalLM,
)
from tests.llava.checkpoints import TEXT, VISION, make_llava_checkpoint

LOAD = """
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(config).__module__, type(config).__name__, type(model).__name__)
"""
ALONE = f"""
from llava.model.config import LlavaConfig
from transformers import AutoModelForCausalLM
config = LlavaConfig(**{TEXT!r})
print(type(config).__module__, type(config).__name__, type(AutoModelForCausalLM.from_config(config)).__name__)
"""
FORKED = """
import os, sys
import llava, qlip
assert not {"torch", "transformers"} & set(sys.modules)
import transformers.modeling_utils
from transformers import AutoTokenizer
assert not {name for name in sys.modules if name.startswith("llava.model")}
for code in sys.argv[2:]:
    if not (child := os.fork()):
        exec(code)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Imports llava, then transformers, which takes longest, and runs each code in a process of its own."""


def test_a_fresh_process_builds_a_model_by_the_auto_classes(tmp_path):
    """By the checkpoint's own type, and by an import of the configuration alone."""
    folder = make_llava_checkpoint(tmp_path, model_type="llava_llama")
    command = [sys.executable, "-c", FORKED, folder, LOAD, ALONE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    expected = "llava.model.config LlavaLlamaConfig LlavaLlamaForCausalLM"
    assert done.stdout.splitlines() == [expected] * 2, done.stderr
    assert done.returncode == 0, done.stderr


def test_transformers_may_be_imported_first(monkeypatch):
    """What transformers knows of a type is forgotten here, as in a process that has not imported llava yet."""
    monkeypatch.delitem(CONFIG_MAPPING_NAMES, "llava_qwen")
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", {})
    monkeypatch.setattr(CONFIG_MAPPING, "_modules", {})
    monkeypatch.delitem(sys.modules, "transformers.models.llava_qwen", raising=False)
    with pytest.raises(ValueError, match="llava_qwen"):
        AutoConfig.for_model("llava_qwen")
    register_lazily()
    assert type(AutoConfig.for_model("llava_qwen")) is LlavaQwenConfig


@pytest.mark.parametrize(
    ("model_type", "config", "model"),
    [
        ("llava_llama", LlavaConfig, LlavaLlamaForCausalLM),
        ("llava_mistral", LlavaMistralConfig, LlavaMistralForCausalLM),
        ("llava_qwen", LlavaQwenConfig, LlavaQwenForCausalLM),
    ],
)
def test_each_type_builds_its_model(model_type, config, model):
    settings = AutoConfig.for_model(model_type, **TEXT, mm_vision_config=VISION)
    assert type(settings) is config
    with torch.device("meta"):
        assert type(AutoModelForCausalLM.from_config(settings)) is model


def test_transformers_own_llava_is_found_as_before():
    """It has a class named LlavaConfig, too."""
    assert type(AutoConfig.for_model("llava")) is TransformersLlavaConfig
    assert AutoModelForImageTextToText._model_mapping[TransformersLlavaConfig].__name__ == (
        "LlavaForConditionalGeneration"
    )


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageTextToText])
def test_an_auto_class_without_a_model_of_ours_does_not_know_it(auto_class):
    """It says so, then, and does not build transformers' own Llava, which reads other fields."""
    for config in (LlavaConfig, LlavaMistralConfig, LlavaMptConfig, LlavaQwenConfig):
        assert config not in auto_class._model_mapping
        assert config in AutoModelForCausalLM._model_mapping


def test_no_processor_of_transformers_is_taken_for_ours(tmp_path):
    """As for the other language models, what comes back is the tokenizer."""
    for model_type in ("llava_llama", "llava_mistral"):
        folder = make_llava_checkpoint(tmp_path / model_type, model_type=model_type)
        assert isinstance(AutoProcessor.from_pretrained(folder), PreTrainedTokenizerBase)


def test_llavas_name_of_the_configuration_stays(tmp_path):
    config = LlavaConfig(**TEXT)
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()
    assert pickle.loads(b"cllava.model.config\nLlavaConfig\n.") is LlavaConfig  # of an older version


def test_star_import_names_the_classes():
    names: dict[str, object] = {}
    exec("from llava.model import *", names)
    assert {"LlavaConfig", "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM"} <= set(names)


@pytest.mark.parametrize("name", ["llava_arch", "config", "language_model", "multimodal_encoder"])
def test_a_submodule_is_found_as_an_attribute(name):
    assert getattr(llava.model, name).__name__ == f"llava.model.{name}"


def test_what_the_package_lacks_is_an_attribute_error():
    assert "LlavaLlamaForCausalLM" in dir(llava.model)
    with pytest.raises(AttributeError, match="no attribute 'LlavaGemmaForCausalLM'"):
        llava.model.LlavaGemmaForCausalLM  # noqa: B018


def test_advice_to_install_what_nothing_needs_is_dropped(caplog):
    """It is that of bitsandbytes, which peft and transformers import in every training; its other warnings pass."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load: %s", ModuleNotFoundError("No module named 'kernels'"))
    log.warning("Failed to load: %s", RuntimeError("no such symbol"))
    assert [record.getMessage() for record in caplog.records] == ["Failed to load: no such symbol"]
