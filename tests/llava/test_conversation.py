"""Prompts equal, to the character, the formats that LLaVA's checkpoints were trained on."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from PIL import Image

from llava.conversation import Conversation, SeparatorStyle, conv_templates, default_conversation

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
USER = HUMAN.replace("human", "user")
MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. "
    "The assistant gives helpful and honest answers.<|im_end|>"
)

TWO_TURNS = {
    "vicuna_v1": f"{USER} USER: <image>\nHi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "v1": f"{USER} USER: <image>\nHi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "llava_v1": f"{HUMAN} USER: <image>\nHi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "v1_mmtag": f"{MMTAG} USER: <image>\nHi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    "llava_v0": f"{HUMAN}###Human: <image>\nHi###Assistant: Hello###Human: Bye###Assistant:",
    "v0_mmtag": f"{MMTAG}###Human: <image>\nHi###Assistant: Hello###Human: Bye###Assistant:",
    "llava_llama_2": (f"[INST] <<SYS>>\n{VISION}\n<</SYS>>\n\n<image>\nHi [/INST] Hello </s><s>[INST] Bye [/INST]"),
    "mistral_instruct": "[INST] <image>\nHi [/INST] Hello </s>[INST] Bye [/INST]",
    "mpt": (
        f"{MPT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\nHello<|im_end|>"
        "<|im_start|>user\nBye<|im_end|><|im_start|>assistant\n"
    ),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nHi<|im_end|>"
        "<|im_start|>assistant\nHello<|im_end|><|im_start|>user\nBye<|im_end|><|im_start|>assistant\n"
    ),
    "llava_llama_3": (
        f"<|start_header_id|>system<|end_header_id|>\n\n{VISION}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen_1_5": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "plain": "<image>\nHi\nHello\nBye\n",
}


def talk(name: str, *texts: object) -> Conversation:
    conversation = conv_templates[name].copy()
    for i, text in enumerate(texts):
        conversation.append_message(conversation.roles[i % 2], text)
    return conversation


@pytest.mark.parametrize("name", TWO_TURNS)
def test_two_turns_make_the_documented_prompt(name: str) -> None:
    assert talk(name, "<image>\nHi", "Hello", "Bye", None).get_prompt() == TWO_TURNS[name]


def test_every_template_name_that_clients_use_exists() -> None:
    clients_use = (
        "default v0 v1 vicuna_v1 llama_2 mistral_instruct chatml_direct mistral_direct plain v0_plain "
        "llava_v0 v0_mmtag llava_v1 v1_mmtag llava_llama_2 llava_llama_3 qwen_1_5 mpt"
    )
    assert set(conv_templates) == set(clients_use.split())
    assert default_conversation is conv_templates["vicuna_v1"]


def test_version_0_opens_with_its_worked_example_which_is_not_shown() -> None:
    conversation = talk("v0", "Hi", None)
    prompt = conversation.get_prompt()
    assert prompt.startswith(
        f"{HUMAN}###Human: What are the key differences between renewable and non-renewable energy sources?"
        "###Assistant: Renewable energy sources are those that can be replenished naturally"
    )
    assert prompt.endswith("lead to economic and social instability.\n###Human: Hi###Assistant:")
    assert conversation.to_gradio_chatbot() == [["Hi", None]]


def test_llama_2_has_metas_system_text() -> None:
    prompt = talk("llama_2", "Hi", None).get_prompt()
    assert prompt.startswith("[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer")
    assert "while being safe.  Your answers" in prompt
    assert prompt.endswith("please don't share false information.\n<</SYS>>\n\nHi [/INST]")


@pytest.mark.parametrize("first", [("ASSISTANT", "Hello"), ("USER", None)])
def test_llama_2_must_begin_with_the_user(first: tuple[str, str | None]) -> None:
    conversation = conv_templates["llama_2"].copy()
    conversation.append_message(*first)
    with pytest.raises(ValueError, match="first message must be text from 'USER'"):
        conversation.get_prompt()


@pytest.mark.parametrize("text", ["Hi\n<image>", "<image>\nHi", "Hi"])
def test_a_picture_in_the_first_message_moves_its_token_to_the_front(text: str) -> None:
    conversation = talk("vicuna_v1", (text, Image.new("RGB", (8, 8)), "Pad"), None)
    assert conversation.get_prompt() == f"{USER} USER: <image>\nHi ASSISTANT:"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("v1_mmtag", f"{MMTAG} USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Hi ASSISTANT:"),
        ("v0_mmtag", f"{MMTAG}###Human: <Image><image></Image>###Assistant: Received.###Human: Hi###Assistant:"),
    ],
)
def test_formats_with_image_tags_give_the_picture_a_turn_of_its_own(name: str, prompt: str) -> None:
    assert talk(name, ("Hi <image>", Image.new("RGB", (8, 8)), "Pad"), None).get_prompt() == prompt


def test_a_later_image_keeps_the_place_of_its_token() -> None:
    conversation = talk("vicuna_v1", "Hi", "Hello", ("Look: <image>", Image.new("RGB", (8, 8)), "Pad"), None)
    assert conversation.get_prompt().endswith("USER: Look: <image> ASSISTANT:")


def test_a_copy_shares_no_messages_and_keeps_every_setting() -> None:
    original = talk("v1_mmtag", "Hi")
    original.skip_next = True
    copy = original.copy()
    assert copy == original
    copy.append_message("ASSISTANT", "Hello")
    copy.messages[0][1] = "changed"
    assert original.messages == [["USER", "Hi"]]
    assert conv_templates["v1_mmtag"].messages == []


def test_separator_styles_are_llavas() -> None:
    assert [style.name for style in SeparatorStyle] == ["SINGLE", "TWO", "MPT", "PLAIN", "LLAMA_2", "CHATML"]


def test_the_record_holds_texts_without_pictures() -> None:
    record = talk("vicuna_v1", ("Hi <image>", Image.new("RGB", (8, 8)), "Pad"), "Hello").dict()
    assert record == {
        "system": USER,
        "roles": ("USER", "ASSISTANT"),
        "messages": [["USER", "Hi <image>"], ["ASSISTANT", "Hello"]],
        "offset": 0,
        "sep": " ",
        "sep2": "</s>",
    }


@pytest.mark.parametrize(
    ("mode", "size"), [("Pad", (40, 40)), ("Resize", (336, 336)), ("Default", (40, 20)), ("Crop", (40, 20))]
)
def test_the_users_pictures_come_fitted_as_asked(mode: str, size: tuple[int, int]) -> None:
    conversation = talk("vicuna_v1", ("Hi <image>", Image.new("RGB", (40, 20), "red"), mode), "Hello")
    (picture,) = conversation.get_images(return_pil=True)
    assert picture.size == size
    (encoded,) = conversation.get_images()
    decoded = Image.open(BytesIO(base64.b64decode(encoded)))
    assert decoded.format == "PNG"
    assert decoded.tobytes() == picture.tobytes()


def test_large_images_shrink_to_the_chat_size() -> None:
    conversation = talk("vicuna_v1", ("Hi", Image.new("RGB", (1000, 2000)), "Default"))
    assert conversation.get_images(return_pil=True)[0].size == (672, 1344)


def test_one_picture_is_fitted_as_a_web_server_asks() -> None:
    """Longer side to 100, or less where the shorter one would exceed 40; and as the file that is asked for."""
    conversation = conv_templates["v1"].copy()
    small, large = Image.new("RGB", (80, 60)), Image.new("RGB", (400, 200))
    assert conversation.process_image(small, "Default", return_pil=True).size == (80, 60)
    assert conversation.process_image(large, "Default", return_pil=True, max_len=100, min_len=40).size == (80, 40)
    assert conversation.process_image(large, "Pad", return_pil=True, max_len=100, min_len=90).size == (90, 90)
    text = conversation.process_image(small, "Resize", image_format="JPEG")
    with Image.open(BytesIO(base64.b64decode(text))) as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (336, 336))


def test_an_unknown_way_to_fit_a_picture_is_refused() -> None:
    conversation = talk("vicuna_v1", ("Hi", Image.new("RGB", (8, 8)), "Stretch"))
    with pytest.raises(ValueError, match="'Stretch'"):
        conversation.get_images()


def test_the_web_demo_gets_pairs_with_the_picture_as_a_tag() -> None:
    conversation = talk("vicuna_v1", ("<image>\nHi", Image.new("RGB", (8, 8)), "Default"), "Hello", "Bye", None)
    (first, second) = conversation.to_gradio_chatbot()
    assert first[0].startswith('<img src="data:image/jpeg;base64,')
    assert first[0].endswith("/>Hi")
    assert first[1] == "Hello"
    assert second == ["Bye", None]
