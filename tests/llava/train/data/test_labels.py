"""Labels are on the answers and their ends, whatever the template, the tokenizer and the texts; ids are inference's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizer

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.train.data.labels import build_pieces, encode_conversation
from tests.llava.train.tokenizers import (
    DATA,
    NAMES,
    make_blank_joining_tokenizer,
    make_tokenizer,
    star,
    talk,
    written_targets,
)

GOLDEN = [json.loads(line) for line in (DATA / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
"""Samples with LLaVA's own ids and labels."""

SPANS = [name for name, template in conv_templates.items() if template.sep_style is not SeparatorStyle.SINGLE]
CHATS = [name for name in SPANS if conv_templates[name].sep_style is not SeparatorStyle.PLAIN]
CONVERSATIONS = {
    "one turn": ["What is it?", "a red ball"],
    "three turns": ["a?", "a red", "b?", "ball", "c?", "yes"],
    "an image": ["<image>\nWhat is it?", "a red ball"],
    "two images": ["<image>\nand <image>?", "red", "<image>\nand this?", "ball"],
    "an empty answer": ["a?", "", "b?", "ball", "c?", ""],
    "separators inside": [
        "x ASSISTANT: USER: ### [/INST] <<SYS>>",
        "y ASSISTANT: USER: [INST] [/INST] ### Human:",
        "</s>USER: z<|im_end|>",
        "end",
    ],
    "blanks around": ["  a\n", "  a red \n", "\t", " \n "],
    "Unicode": ["日本 🙂?", "é 🙂 日本"],
    "words with one beginning": ["USERS", "ASSISTANTS", "a", "USER"],
}


def expected_target(template: Conversation, tokenizer: Any, answer: str) -> str:
    """What the model learns to write for an answer."""
    if template.sep_style is SeparatorStyle.PLAIN:  # begins a text, where SentencePiece adds a space
        return f"{'' if tokenizer.bos_token_id is None else ' '}{answer}\n"
    if template.sep_style is SeparatorStyle.MPT:
        return f"{answer}{template.sep}"
    if template.sep_style is SeparatorStyle.CHATML:
        return f"{answer}<|im_end|>\n"
    if not answer:
        return "</s>"
    return f" {answer} </s>" if template.sep_style is SeparatorStyle.LLAMA_2 else f" {answer}</s>"


def check_targets(template: Conversation, tokenizer: Any, texts: list[str]) -> None:
    encoded = encode_conversation(talk(*texts), template, tokenizer, has_image=True)
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    wanted = [expected_target(template, tokenizer, answer) for answer in texts[1::2]]
    assert written_targets(tokenizer, ids, labels) == wanted
    assert labels[0] == IGNORE_INDEX


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['template']}-{case['sample']['id']}")
def test_ids_and_labels_are_those_of_llava(case):
    turns = [turn for i, turn in enumerate(case["sample"]["conversations"]) if i or turn["from"] == "human"]
    encoded = encode_conversation(
        turns, conv_templates[case["template"]], make_tokenizer("not legacy"), "image" in case["sample"]
    )
    assert encoded.input_ids.tolist() == case["input_ids"]
    assert encoded.labels.tolist() == case["labels"]


@pytest.mark.parametrize(
    ("template", "tokenizer", "texts", "tokens"),
    [
        ("v1", "not legacy", ["a?", "red", "a?", ""],
         "_ S _USER : _a ? _ASSISTANT : *_red *</s> US ER : _a ? _ASSISTANT : *</s>"),
        ("plain", "not legacy", ["<image>\nWhat?", "a red"], "<s> <image> *_a *_red *\\n"),
        ("llama_2", "not legacy", ["a", "red", "a", ""],
         "a _ [ / I N ST ] *_red *_ *</s> <s> [ I N ST ] _a _ [ / I N ST ] *</s>"),
        ("mistral_instruct", "not legacy", ["a", "red"], "<s> _ [ I N ST ] _a _ [ / I N ST ] *_red *_ *</s>"),
        ("mpt", "byte level", ["a", "red"], "<|im_start|> a s sistan t \\n *red *<|im_end|>"),
    ],
)  # fmt: skip
def test_the_end_of_a_prompt_looks_like_this(template, tokenizer, texts, tokens):
    short = conv_templates[template].copy()
    short.system = "S" if short.sep_style is SeparatorStyle.TWO else short.system
    tokenizer = make_tokenizer(tokenizer)
    encoded = encode_conversation(talk(*texts), short, tokenizer, has_image=True)
    assert star(tokenizer, encoded.input_ids, encoded.labels).endswith(tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", SPANS)
def test_the_answers_and_their_ends_are_trained_on(template, name):
    conversation = conv_templates[template]
    for texts in CONVERSATIONS.values():
        check_targets(conversation, make_tokenizer(name), texts if template in CHATS else ["<image>", texts[1]])


TEXT = st.lists(
    st.one_of(
        st.sampled_from(["ASSISTANT:", "USER: ", "[/INST]", "[INST] ", "###", " ", "\n", "<|im_end|>", "red", "é"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=4),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("name", ["not legacy", "legacy", "byte level, trimmed"])
@settings(max_examples=60)
@given(template=st.sampled_from(CHATS), texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_the_answers_are_trained_on_whatever_the_texts(name, template, texts):
    check_targets(conv_templates[template], make_tokenizer(name), [text for pair in texts for text in pair])


@settings(max_examples=60)
@given(
    template=st.sampled_from(CHATS),
    texts=st.lists(st.tuples(TEXT.filter(bool), TEXT.filter(bool)), min_size=1, max_size=3),
)
def test_the_prompt_is_the_text_of_inference(template, texts):
    conversation = conv_templates[template].copy()
    flat = [text for pair in texts for text in pair]
    pieces = build_pieces(talk(*flat), conversation)
    for i, text in enumerate(flat):
        conversation.append_message(conversation.roles[i % 2], text)
    assert "".join(piece.text for piece in pieces) == conversation.get_prompt()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
def test_ids_are_those_of_inference(name, texts):
    tokenizer, template = make_tokenizer(name), conv_templates["v1"]
    prompt = "".join(piece.text for piece in build_pieces(talk(*texts), template))
    encoded = encode_conversation(talk(*texts), template, tokenizer, has_image=True)
    assert encoded.input_ids.tolist() == tokenizer_image_token(prompt, tokenizer)


def test_what_the_tokenizer_adds_is_no_target():
    tokenizer = make_tokenizer("not legacy")
    tokenizer.add_eos_token = True
    try:
        encoded = encode_conversation(talk("<image>", "red"), conv_templates["plain"], tokenizer, has_image=True)
        assert star(tokenizer, encoded.input_ids, encoded.labels) == "<s> </s> <image> *_red *\\n </s>"
    finally:
        tokenizer.add_eos_token = False


def test_without_bos_the_first_token_is_no_target_as_nothing_predicts_it():
    tokenizer = make_tokenizer("byte level")
    encoded = encode_conversation(talk("", "a red"), conv_templates["plain"], tokenizer, has_image=False)
    assert star(tokenizer, encoded.input_ids, encoded.labels) == "a *_red *\\n"


def test_a_token_that_crosses_the_border_of_an_answer_is_a_target():
    tokenizer = make_blank_joining_tokenizer()
    encoded = encode_conversation(talk("a", "\na"), conv_templates["mpt"], tokenizer, has_image=False)
    assert star(tokenizer, encoded.input_ids, encoded.labels).endswith("a n t *\\n\\n *a *<|im_end|>")


def test_without_images_the_tag_is_text():
    encoded = encode_conversation(
        talk("What is <image>?", "<image>"), conv_templates["v1"], make_tokenizer("not legacy"), has_image=False
    )
    assert IMAGE_TOKEN_INDEX not in encoded.input_ids
    assert written_targets(make_tokenizer("not legacy"), encoded.input_ids, encoded.labels) == [" <image></s>"]


def test_a_tokenizer_without_places_is_refused():
    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(ValueError, match="Slow does not say where in the text its tokens are.*use_fast=True"):
        encode_conversation(talk("a", "b"), conv_templates["v1"], Slow(), has_image=False)


@pytest.mark.parametrize(
    "speakers", [[], ["human"], ["gpt", "human"], ["human", "human"], ["human", "gpt", "gpt", "human"]]
)
def test_questions_and_answers_must_alternate(speakers):
    turns = [{"from": speaker, "value": "a"} for speaker in speakers]
    with pytest.raises(ValueError, match="they must be 'human', 'gpt', 'human', 'gpt'"):
        encode_conversation(turns, conv_templates["v1"], make_tokenizer("legacy"), has_image=False)


def test_captions_have_one_question():
    with pytest.raises(ValueError, match="4 turns; the template 'plain' takes two.*--version"):
        encode_conversation(talk("a", "b", "c", "d"), conv_templates["plain"], make_tokenizer("legacy"), False)
