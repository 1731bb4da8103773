"""A checkpoint in transformers' format is asked in the words of its own chat template, in a folder of any name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaProcessor

from llava.conversation import conv_templates
from llava.model.builder import load_pretrained_model
from llava.model.loading.chat_template import choose_template, find_template, read_chat_template, recognise
from llava.model.loading.checkpoint import inspect
from llava.model.loading.tokenizer import load_tokenizer
from tests.llava.checkpoints import transformers_model, write_tokenizer

CONTENT = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}"
)


TEXT = "{{ message['content'] + '' }}"


def chat_template(user: str, end: str, assistant: str, content: str = CONTENT) -> str:
    """Writes a chat template; `end` closes a turn."""
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{user}{content}{end}{{% else %}}{assistant}{content}{end}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
    )


VICUNA = chat_template("USER: ", " ", "ASSISTANT:")
LLAMA_3 = chat_template(
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
YI = chat_template("<|im_start|>user\n", "<|im_end|>", "<|im_start|>assistant\n")
QWEN = chat_template("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")
INSTRUCT = chat_template("{{ bos_token }}[INST] ", " [/INST]", "")

TEMPLATES = {
    "LLaVA-1.5": (VICUNA, "llava_llama", "vicuna_v1"),
    "LLaVA-1.6, Llama 3": (LLAMA_3, "llava_llama", "llava_llama_3"),
    "LLaVA-1.6, Yi": (YI, "llava_llama", "chatml_direct"),
    "LLaVA-1.6, Mistral": (INSTRUCT, "llava_mistral", "mistral_instruct"),
    "BakLLaVA, Vicuna's words to Mistral": (VICUNA, "llava_mistral", "vicuna_v1"),
    "Llama 2": (INSTRUCT, "llava_llama", "llava_llama_2"),
    "Qwen": (QWEN, "llava_qwen", "qwen_1_5"),
    "Qwen's words to Llama": (QWEN, "llava_llama", "qwen_1_5"),
    "a line break instead of a space": (chat_template("USER: ", "\n", "ASSISTANT:"), "llava_llama", "vicuna_v1"),
    "ChatML without line breaks, to Qwen": (YI, "llava_qwen", "chatml_direct"),
    "text alone": (chat_template("USER: ", " ", "ASSISTANT:", TEXT), "llava_llama", "vicuna_v1"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers") / "0a1b2c"
    transformers_model().save_pretrained(folder)
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    LlavaProcessor(CLIPImageProcessorPil(), tokenizer, patch_size=14, chat_template=VICUNA).save_pretrained(folder)
    return folder


def config(model_type: str) -> SimpleNamespace:
    return SimpleNamespace(model_type=model_type)


@pytest.mark.parametrize(("written", "model_type", "template"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_template_is_recognised(written: str, model_type: str, template: str) -> None:
    assert recognise(written, config(model_type)) == template


@pytest.mark.parametrize("written", [VICUNA, LLAMA_3, YI], ids=["vicuna", "llama-3", "yi"])
def test_a_question_then_ends_as_transformers_processor_ends_it(checkpoint: Path, written: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    content = [{"type": "image"}, {"type": "text", "text": "Why?"}]
    turns = [{"role": "user", "content": content}]
    expected = processor.apply_chat_template(turns, chat_template=written, add_generation_prompt=True)
    own = conv_templates[recognise(written, config("llava_llama"))].copy()
    own.append_message(own.roles[0], "<image>\nWhy?")
    own.append_message(own.roles[1], None)
    assert own.get_prompt().partition("Why?")[2] == expected.partition("Why?")[2]


def test_it_decides_in_a_folder_of_any_name_and_stays_in_the_configuration(checkpoint: Path) -> None:
    assert load_pretrained_model(checkpoint, device="cpu")[1].config.conv_mode == "vicuna_v1"
    (checkpoint / "chat_template.jinja").write_text(LLAMA_3)
    found = inspect(checkpoint).config
    assert found.conv_mode == choose_template(str(checkpoint), found) == "llava_llama_3"
    values = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(values | {"conv_mode": "llava_v0"}))
    assert inspect(checkpoint).config.conv_mode == "llava_v0"
    (checkpoint / "config.json").write_text(json.dumps(values))


def write_json(file: Path, value: str | list | dict) -> None:
    file.write_text(json.dumps({"chat_template": value}))


def test_it_is_found_where_transformers_looks_for_it(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    several = [{"name": "tool_use", "template": YI}, {"name": "default", "template": QWEN}]
    write_json(tmp_path / "tokenizer_config.json", several)
    assert read_chat_template(tmp_path) == QWEN
    write_json(tmp_path / "processor_config.json", {"default": YI})
    assert read_chat_template(tmp_path) == YI
    write_json(tmp_path / "chat_template.json", INSTRUCT)
    assert read_chat_template(tmp_path) == INSTRUCT
    (tmp_path / "chat_template.jinja").write_text(VICUNA)
    assert read_chat_template(tmp_path) == VICUNA


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (chat_template("<|user|>\n", "<|end|>\n", "<|bot|>\n"), r"by '<|end|>\n<|bot|>\n', which no prompt template"),
        ("{{ raise_exception('no') }}", "can't be rendered"),
        ("{{ unclosed", "can't be rendered"),
        ("always the same", "can't be rendered"),
    ],
)
def test_one_that_is_unknown_is_told_and_chooses_nothing(
    tmp_path: Path, written: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chat_template.jinja").write_text(written)
    with caplog.at_level(logging.WARNING):
        assert find_template(tmp_path, config("llava_mistral")) is None
        assert find_template(tmp_path, config("llava_mistral")) is None
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"the chat template of {tmp_path} ")
    assert problem.replace("\n", r"\n") in line and "('mistral_instruct' by the type)" in line


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ValueError, match=r"chat_template\.json"):
        read_chat_template(tmp_path)
