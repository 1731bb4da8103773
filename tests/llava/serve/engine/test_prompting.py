"""Turns become the prompt that LLaVA was trained on; what no prompt can say is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.serve.engine import ChatEngine
from llava.serve.engine.prompting import Turn, build_conversation
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor

SYSTEM = conv_templates["vicuna_v1"].system
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def engine(**config: object) -> ChatEngine:
    return ChatEngine(BytesTokenizer(), ScriptedModel([], **config), SquareProcessor(), 4096)


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([Turn("user", "Hi")], f"{SYSTEM} USER: Hi ASSISTANT:"),
        ([Turn("user", "Hi", (RED,))], f"{SYSTEM} USER: <image>\nHi ASSISTANT:"),
        ([Turn("user", "", (RED,))], f"{SYSTEM} USER: <image>\n ASSISTANT:"),
        ([Turn("system", "Be brief."), Turn("user", "Hi")], "Be brief. USER: Hi ASSISTANT:"),
        ([Turn("system", ""), Turn("user", "Hi")], f"{SYSTEM} USER: Hi ASSISTANT:"),
        (
            [Turn("user", "Hi"), Turn("assistant", ""), Turn("user", "Hi?")],
            f"{SYSTEM} USER: Hi ASSISTANT:  </s>USER: Hi? ASSISTANT:",
        ),
        (
            [Turn("user", "One", (RED,)), Turn("assistant", "Yes"), Turn("user", "Two", (BLUE, RED))],
            f"{SYSTEM} USER: <image>\nOne ASSISTANT: Yes</s>USER: <image>\n<image>\nTwo ASSISTANT:",
        ),
        ([Turn("user", "", (RED,)), Turn("user", "Hi", (BLUE,))], f"{SYSTEM} USER: <image>\n<image>\nHi ASSISTANT:"),
    ],
)
def test_turns_become_a_prompt(turns: list[Turn], prompt: str) -> None:
    conversation, images = build_conversation(engine(), turns)
    assert conversation.get_prompt() == prompt
    assert images == [image for turn in turns for image in turn.images]


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("qwen_1_5", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"),
        ("chatml_direct", "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|>"),
        ("llava_llama_3", "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"),
        ("mistral_instruct", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"),
    ],
)
def test_a_system_text_keeps_the_formats_role(name: str, opening: str) -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Hi")]
    conversation, _ = build_conversation(engine(conv_mode=name), turns)
    assert conversation.get_prompt().startswith(opening)


def test_a_checkpoint_that_marks_its_pictures_gets_them_marked() -> None:
    conversation, _ = build_conversation(engine(mm_use_im_start_end=True), [Turn("user", "Hi", (RED,))])
    assert "USER: <im_start><image><im_end>\nHi" in conversation.get_prompt()


def test_an_answer_that_says_the_image_token_does_not_end_the_conversation() -> None:
    turns = [Turn("user", "Hi", (RED,)), Turn("assistant", "an <image> of"), Turn("user", "And?")]
    conversation, images = build_conversation(engine(), turns)
    prompt = conversation.get_prompt()
    assert prompt.count("<image>") == len(images) == 1
    assert "an <\u200bimage> of" in prompt


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([], "first and the last message must be the user's"),
        ([Turn("system", "Be brief.")], "first and the last message must be the user's"),
        ([Turn("assistant", "Hi"), Turn("user", "Hi")], "first and the last message must be the user's"),
        ([Turn("user", "Hi"), Turn("assistant", "Hi")], "first and the last message must be the user's"),
        ([Turn("user", "Hi"), Turn("system", "Be brief."), Turn("user", "Hi")], "a system message comes before"),
        ([Turn("user", "Say <image>")], "may not hold '<image>'"),
        ([Turn("user", " ")], "the user's message is empty"),
        ([Turn("user", "Hi"), Turn("assistant", "Look", (RED,)), Turn("user", "?")], "only the user may show pictures"),
        ([Turn("system", "Hi", (RED,)), Turn("user", "?")], "only the user may show pictures"),
    ],
)
def test_what_no_prompt_can_say_is_refused(turns: list[Turn], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_conversation(engine(), turns)
