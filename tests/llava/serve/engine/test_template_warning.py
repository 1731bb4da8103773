"""One line says which prompt template is in use where LLaVA would have guessed another from the folder's name."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from llava.eval import model_vqa_loader, run_llava
from llava.model.loading.chat_template import choose_template
from llava.serve import cli
from llava.serve.engine.template_warning import guess_template, warn_of_guess
from tests.llava.checkpoints import make_llava_checkpoint, transformers_model, write_tokenizer
from tests.llava.model.loading.test_chat_template import LLAMA_3

NAMES = {
    "llava-v1.5-7b": "llava_v1",
    "llava-v1.5-7b-lora": "llava_v1",
    "llava-llama-2-13b-chat-lightning-preview": "llava_llama_2",
    "LLaVA-Lightning-MPT-7B-preview": "mpt",
    "llava-v1.6-mistral-7b": "mistral_instruct",
    "llava-v1.6-34b": "chatml_direct",
    "llava-v1.6-vicuna-7b": "llava_v1",
    "LLaVA-7b-delta-v0": "llava_v0",
    "my-model": "llava_v0",
}


CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Yi's and Qwen's tokenizers have it."""

INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""As Mistral's tokenizers have it."""

BY_NAME, BY_TOKENIZER = "LLaVA would take {!r}, by the name", "its tokenizer's chat template is that of {!r}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (50, 40)).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "llava.serve.engine.template_warning"]


@pytest.mark.parametrize(("name", "template"), NAMES.items())
def test_llavas_guess_is_known(name: str, template: str) -> None:
    assert guess_template(name) == template


def config(model_type: str, conv_mode: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(model_type=model_type, conv_mode=conv_mode, has_tower=True, mm_vision_tower="clip")


@pytest.mark.parametrize(
    ("name", "model_type", "template"),
    [
        ("liuhaotian/llava-v1.6-34b", "llava_llama", "chatml_direct"),
        ("llava-hf/llava-v1.6-34b-hf", "llava_llama", "chatml_direct"),
        ("llava-hf/llama3-llava-next-8b-hf", "llava_llama", "llava_llama_3"),
        ("llava-hf/llava-1.5-7b-hf", "llava_llama", "vicuna_v1"),
        ("liuhaotian/llava-v1.6-mistral-7b", "llava_mistral", "mistral_instruct"),
        ("my-model", "llava_mistral", "mistral_instruct"),
        ("SkunkworksAI/BakLLaVA-1", "llava_mistral", "vicuna_v1"),
        ("lmms-lab/llama3-llava-next-8b", "llava_llama", "llava_llama_3"),
        ("lmms-lab/llava-next-72b", "llava_qwen", "qwen_1_5"),
        ("models/any", "llava_mpt", "mpt"),
        ("liuhaotian/llava-llama-2-13b-chat-lightning-preview", "llava_llama", "llava_llama_2"),
        ("liuhaotian/llava-v1.6-vicuna-7b", "llava_llama", "vicuna_v1"),
        ("liuhaotian/llava-v1.5-7b", "llava_llama", "vicuna_v1"),
    ],
)
def test_a_checkpoint_that_names_none_gets_its_familys_template(name: str, model_type: str, template: str) -> None:
    assert choose_template(name, config(model_type)) == template
    assert choose_template(name, config(model_type, "llava_v0")) == "llava_v0"


def test_all_commands_warn_alike_and_once(
    checkpoint: Path, picture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "llava-mpt"
    path.symlink_to(checkpoint)
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "p.png", "text": "What?"}))
    own = ["--model-path", str(path), "--device", "cpu"]
    answers = ["--question-file", str(tmp_path / "q.jsonl"), "--answers-file", str(tmp_path / "a.jsonl")]
    with caplog.at_level(logging.WARNING):
        assert cli.main([*own, "--image-file", picture, "--prompt", "What?", "--max-new-tokens", "1"]) == 0
        run_llava.eval_model(
            run_llava.parse_args([*own, "--image-file", picture, "--query", "What?", "--max_new_tokens", "1"])
        )
        assert model_vqa_loader.main([*own, *answers, "--image-folder", str(tmp_path), "--max_new_tokens", "1"]) == 0
    (line,) = warnings(caplog)
    assert line == (
        f"the prompt template is 'vicuna_v1', since {path} names none (conv_mode in config.json); LLaVA would take"
        " 'mpt', by the name: choose with --conv-mode"
    )


def load(path: Path, *flags: str) -> None:
    parser = cli.OneLineParser()
    cli.add_model_flags(parser)
    cli.load_engine(parser.parse_args(["--model-path", str(path), "--device", "cpu", *flags]))


def test_nothing_is_said_where_the_template_is_chosen_or_equal(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "llava-v1.5-7b").symlink_to(checkpoint)
    (tmp_path / "llava-llama-2").symlink_to(checkpoint)
    make_llava_checkpoint(tmp_path / "named", conv_mode="vicuna_v1")
    transformers_model().save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "llava-v1.5-7b")
        load(tmp_path / "llava-llama-2", "--conv-mode", "vicuna_v1")
        load(tmp_path / "named")
        load(tmp_path / "theirs")  # LLaVA can't load it
    assert warnings(caplog) == []


def test_a_link_has_its_own_name_or_that_of_its_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--liuhaotian--llava-v1.6-34b" / "snapshots" / "0a1b2c"
    snapshot.mkdir(parents=True)
    for name, template in {"mine": "chatml_direct", "my-llama3": "llava_llama_3"}.items():
        (tmp_path / name).symlink_to(snapshot)
        assert choose_template(str(tmp_path / name), config("llava_llama")) == template


def test_a_tokenizers_chat_template_that_differs_is_told(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the language model's; LLaVA may have trained it with another."""
    for name in ("llava-v1.5-mine", "mine"):
        shutil.copytree(checkpoint, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(LLAMA_3)
        with caplog.at_level(logging.WARNING):
            load(tmp_path / name)
    by_tokenizer = "its tokenizer's chat template is that of 'llava_llama_3'"
    first, second = warnings(caplog)
    assert f"(conv_mode in config.json); {by_tokenizer}: choose" in first
    assert f"LLaVA would take 'llava_v0', by the name; {by_tokenizer}: choose" in second


@pytest.mark.parametrize(
    ("name", "model_type", "written", "others"),
    [
        ("llava-v1.5-7b", "llava_llama", None, []),
        ("llava-v1.6-vicuna-7b", "llava_llama", None, []),
        ("llava-v1.6-mistral-7b", "llava_mistral", INSTRUCT, []),
        ("llava-v1.6-34b", "llava_llama", CHATML, []),
        ("llava-llama-2-13b-chat-lightning-preview", "llava_llama", INSTRUCT, []),
        ("llama3-llava-next-8b", "llava_llama", LLAMA_3, []),
        ("llava-next-72b", "llava_qwen", CHATML, []),
        ("LLaVA-Lightning-MPT-7B-preview", "llava_mpt", None, []),
        ("llava-mpt-7b-chat", "llava_mpt", CHATML, []),
        ("BakLLaVA-1", "llava_mistral", None, []),
        ("BakLLaVA-1", "llava_mistral", CHATML, [BY_TOKENIZER.format("qwen_1_5")]),
        ("Nous-Hermes-2-Vision", "llava_mistral", None, [BY_NAME.format("llava_v0")]),
        ("llava-v1-zephyr", "llava_mistral", INSTRUCT, [BY_NAME.format("llava_v1")]),
        ("llava-mistral-chatml", "llava_mistral", CHATML, [BY_TOKENIZER.format("qwen_1_5")]),
        ("my-model", "llava_mpt", LLAMA_3, [BY_NAME.format("llava_v0"), BY_TOKENIZER.format("llava_llama_3")]),
        ("llava-next-72b", "llava_qwen", LLAMA_3, [BY_TOKENIZER.format("llava_llama_3")]),
        ("llava-v1.6-34b", "llava_llama", LLAMA_3, [BY_TOKENIZER.format("llava_llama_3")]),
    ],
)
def test_each_family_is_warned_of_where_another_template_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, model_type: str, written: str | None, others: list[str]
) -> None:
    """Released checkpoints are not; `written` is their tokenizer's. System texts and line breaks may differ."""
    (tmp_path / name).mkdir()
    if written is not None:
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": written}))
    template = choose_template(str(tmp_path / name), config(model_type))
    with caplog.at_level(logging.WARNING):
        warn_of_guess(str(tmp_path / name), config(model_type), template)
    said = [f"(conv_mode in config.json); {'; '.join(others)}: choose with --conv-mode"] if others else []
    assert [line.partition("names none ")[2] for line in warnings(caplog)] == said


@pytest.mark.parametrize("name", ["llava-mpt-7b", "a-model-of-v0"])
def test_each_checkpoint_is_warned_of(
    checkpoint: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).symlink_to(checkpoint)
    with caplog.at_level(logging.WARNING):
        load(tmp_path / name)
        load(tmp_path / name)
    assert len(warnings(caplog)) == 1
