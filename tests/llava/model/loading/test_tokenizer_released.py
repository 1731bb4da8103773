"""Tokenizers in the released formats of Llama 3 and Qwen2: no unknown token, a BOS that is added once, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.loading.tokenizer import load_tokenizer
from llava.serve.engine.prompting import find_end_tokens
from llava.train.data.labels import encode_conversation

LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["You are a helpful assistant. user assistant system", "What is in the picture? A red cup."] * 4
LLAMA_3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Published chat templates, as far as they concern messages of text."""


def write_tokenizer(folder: Path, special: list[str], settings: dict[str, Any], adds_bos: bool) -> Path:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE with special tokens after its vocabulary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    backend.add_special_tokens(special)
    if adds_bos:
        bos = special[0]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def llama_3(tmp_path_factory) -> Any:
    names = {"bos_token": LLAMA_3[0], "eos_token": LLAMA_3[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("llama"), LLAMA_3, names, adds_bos=True))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Any:
    names = {"bos_token": None, "eos_token": QWEN[2], "pad_token": QWEN[0], "tokenizer_class": "Qwen2Tokenizer"}
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("qwen"), QWEN, names, adds_bos=False))


def ask(name: str, *texts: str | None) -> str:
    conversation = conv_templates[name].copy()
    for i, text in enumerate(texts):
        conversation.append_message(conversation.roles[i % 2], text)
    return conversation.get_prompt()


def messages(name: str, header: str, *texts: str) -> list[dict[str, str]]:
    system = conv_templates[name].system.removeprefix(header)
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *talk]


def test_llama_3_prompts_are_those_of_its_chat_template_with_one_bos(llama_3):
    prompt = ask("llava_llama_3", "What is it?", "A red cup.", "Sure?", None)
    header = "<|start_header_id|>system<|end_header_id|>\n\n"
    talk = messages("llava_llama_3", header, "What is it?", "A red cup.", "Sure?")
    options = {"chat_template": LLAMA_3_CHAT, "add_generation_prompt": True}
    text = llama_3.apply_chat_template(talk, tokenize=False, **options)
    assert text == LLAMA_3[0] + prompt
    expected = llama_3(text, add_special_tokens=False).input_ids
    assert tokenizer_image_token(prompt, llama_3) == expected
    assert tokenizer_image_token(text, llama_3) == expected  # that of the text is not doubled
    assert expected.count(llama_3.bos_token_id) == 1


def test_qwens_prompts_are_those_of_its_chat_template_without_bos(qwen):
    prompt = ask("qwen_1_5", "What is it?", "A red cup.", "Sure?", None)
    talk = messages("qwen_1_5", "<|im_start|>system\n", "What is it?", "A red cup.", "Sure?")
    text = qwen.apply_chat_template(talk, tokenize=False, chat_template=QWEN_CHAT, add_generation_prompt=True)
    assert text == prompt
    assert tokenizer_image_token(prompt, qwen) == qwen(text).input_ids
    assert qwen.bos_token_id is None


@pytest.mark.parametrize("name", ["llama_3", "qwen"])
def test_images_lie_between_the_pieces_joined_by_hand(request, name):
    tokenizer = request.getfixturevalue(name)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    plain = [tokenizer(text, add_special_tokens=False).input_ids for text in ("What", " is", "\nit?")]
    expected = [*bos, *plain[0], IMAGE_TOKEN_INDEX, *plain[1], IMAGE_TOKEN_INDEX, *plain[2]]
    assert tokenizer_image_token("What<image> is<image>\nit?", tokenizer) == expected


def test_a_bos_in_the_text_alone_takes_nothing_from_the_pieces_behind(tmp_path):
    """As with a Llama 3 tokenizer that adds none."""
    names = {"bos_token": LLAMA_3[0], "eos_token": LLAMA_3[1]}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, LLAMA_3, names, adds_bos=False))
    plain = tokenizer("red").input_ids
    expected = [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX, *plain]
    assert tokenizer_image_token("<|begin_of_text|><image>red", tokenizer) == expected


@pytest.mark.parametrize(("name", "template"), [("llama_3", "llava_llama_3"), ("qwen", "qwen_1_5")])
def test_labels_are_on_the_answer_and_its_end(request, name, template):
    tokenizer = request.getfixturevalue(name)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red cup."}]
    encoded = encode_conversation(turns, conv_templates[template], tokenizer, has_image=True)
    prompt = ask(template, "<image>\nWhat is it?", "A red cup.")
    assert encoded.input_ids.tolist() == tokenizer_image_token(prompt, tokenizer)
    trained = [label for label in encoded.labels.tolist() if label != IGNORE_INDEX]
    assert tokenizer.decode(trained).rstrip("\n") == "A red cup." + conv_templates[template].sep


def test_answers_end_at_every_token_that_is_named(llama_3, qwen):
    """<|eot_id|> is neither the tokenizer's end nor, here, in generation_config.json."""
    from transformers import GenerationConfig

    eot, end = (llama_3.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|end_of_text|>"))
    for named in (None, end, [end]):
        config = GenerationConfig(eos_token_id=named)
        assert find_end_tokens(llama_3, config, conv_templates["llava_llama_3"]) == {eot, end}
    assert find_end_tokens(llama_3, None, conv_templates["vicuna_v1"]) == {end}
    assert find_end_tokens(qwen, None, conv_templates["qwen_1_5"]) == {qwen.convert_tokens_to_ids("<|im_end|>")}


def test_qwens_vocabulary_and_merges_are_read_without_a_tokenizer_json(qwen, tmp_path):
    model = json.loads(qwen.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    added = {str(i): {"content": str(t), "special": True} for i, t in qwen.added_tokens_decoder.items()}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": QWEN[2], "pad_token": QWEN[0], "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": added}))
    tokenizer = load_tokenizer(tmp_path)
    prompt = ask("qwen_1_5", "What is in the picture?", None)
    assert tokenizer(prompt).input_ids == qwen(prompt).input_ids
    assert isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.is_fast
