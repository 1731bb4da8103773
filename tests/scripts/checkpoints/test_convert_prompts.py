"""The chat template that scripts.convert_checkpoint writes: the prompts are those of llava.conversation."""

from __future__ import annotations

import json

import pytest
from jinja2 import TemplateError
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.loading.tokenizer import load_tokenizer
from scripts.chat_template import chat_template
from scripts.checkpoints.formats import convert
from tests.llava.checkpoints import make_llava_checkpoint
from tests.qlip.integrations.models import make_processor


def write(messages: list[dict]) -> str:
    """The prompt that a processor of transformers writes by the template of vicuna_v1."""
    template = chat_template("vicuna_v1")
    return make_processor("llava").apply_chat_template(messages, chat_template=template, add_generation_prompt=True)


def test_a_system_message_replaces_the_formats_own():
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.system = "Be brief."
    conversation.append_message(conversation.roles[0], "hello")
    conversation.append_message(conversation.roles[1], None)
    for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        messages = [{"role": "system", "content": content}, {"role": "user", "content": "hello"}]
        assert write(messages) == conversation.get_prompt()


@pytest.mark.parametrize("role", ["system", "tool", "narrator"])
def test_roles_that_the_prompt_has_no_place_for_are_refused(role):
    messages = [{"role": "user", "content": "hello"}, {"role": role, "content": "well"}]
    with pytest.raises(TemplateError, match=f"the role of a message is {role}; allowed are user and assistant"):
        write(messages)


@pytest.mark.parametrize("in_tokenizer", [True, False], ids=["tokens saved", "tokens added when loaded"])
def test_marks_around_an_image_stay_in_the_prompt(tmp_path, in_tokenizer):
    """With mm_use_im_start_end a picture stands between two tokens; the ids are those that llava reads."""
    source = make_llava_checkpoint(tmp_path / "source", conv_mode="vicuna_v1", mm_use_im_start_end=True)
    if in_tokenizer:
        tokenizer = load_tokenizer(source)
        tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
        tokenizer.save_pretrained(source)
    convert(str(source), tmp_path / "there")
    processor = AutoProcessor.from_pretrained(tmp_path / "there", backend="pil")
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<im_start><image><im_end>\nwhat is it?")
    conversation.append_message(conversation.roles[1], None)
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == conversation.get_prompt()
    tokenizer = load_pretrained_model(str(source), device="cpu")[0]
    expected = tokenizer_image_token(prompt, tokenizer)
    image_token = json.loads((tmp_path / "there" / "config.json").read_text())["image_token_index"]
    assert processor.tokenizer(prompt)["input_ids"] == [i if i != IMAGE_TOKEN_INDEX else image_token for i in expected]
    config = LlavaForConditionalGeneration.from_pretrained(tmp_path / "there").config
    assert max(processor.tokenizer.convert_tokens_to_ids(["<im_end>", "<image>"])) < config.text_config.vocab_size
