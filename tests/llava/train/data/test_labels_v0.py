"""Templates of the style SINGLE have LLaVA's labels, which come from counts of tokens and are odd."""

from __future__ import annotations

import pytest

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.train.data.labels import encode_conversation
from tests.llava.train.tokenizers import NAMES, make_tokenizer, star, talk

TEMPLATES = [name for name, template in conv_templates.items() if template.sep_style is SeparatorStyle.SINGLE]
CONVERSATIONS = {
    "one turn": ["What is it?", "a red ball"],
    "four turns": ["a?", "a red", "b\n### Human: ?", "ball", "c?", "", "d", "  é "],
    "an image": ["<image>\nWhat is it?", "a red ball", "And?", "blue"],
    "an image that the shifted masks reach": ["a", "b", "c", "d", "e", "f", "<image>", "h", "<image>", "j"],
}


def masks_by_counting(template, tokenizer, texts):
    """LLaVA's rule: (first, one past the last) token of each stretch that is masked.

    Every question is masked from its third token on; turns are as long as they are alone.
    """
    counts = []
    for i, text in enumerate(texts):
        turn = f"### {template.roles[i % 2]}: {text}\n"
        counts.append(len(tokenizer_image_token(turn, tokenizer)))
    begin = len(tokenizer_image_token(template.system + "\n\n", tokenizer))
    stretches = [(0, begin)]
    for i, count in enumerate(counts):
        if i % 2 == 0:
            stretches.append((begin + 2, begin + count))
        begin += count
    return stretches


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_are_llavas(template, name):
    conversation, tokenizer = conv_templates[template], make_tokenizer(name)
    for texts in CONVERSATIONS.values():
        turns = "".join(f"### {conversation.roles[i % 2]}: {text}\n" for i, text in enumerate(texts))
        ids = tokenizer_image_token(f"{conversation.system}\n\n{turns}### ", tokenizer)
        labels = [IGNORE_INDEX if token == IMAGE_TOKEN_INDEX else token for token in ids]
        for first, last in masks_by_counting(conversation, tokenizer, texts):
            labels[first:last] = [IGNORE_INDEX] * len(labels[first:last])
        encoded = encode_conversation(talk(*texts), conversation, tokenizer, has_image=True)
        assert encoded.input_ids.tolist() == ids
        assert encoded.labels.tolist() == labels


def test_roles_of_answers_and_hashes_of_questions_are_trained_on_and_the_masks_shift():
    template, tokenizer = conv_templates["v0"].copy(), make_tokenizer("not legacy")
    template.system = "a"
    encoded = encode_conversation(talk("a", "red", "a", "b"), template, tokenizer, has_image=False)
    # Alone, a turn has two tokens more, <s> and a prefix: so the masks shift by two with each turn before.
    assert star(tokenizer, encoded.input_ids, encoded.labels) == (
        "<s> _a \\n \\n *# *# # _ H u man : _a \\n # # *# *_A *ss *istant *: *_red *\\n"
        " *# *# *# *_ *H *u man : _a \\n # # # _A ss istant *: *_b *\\n *# *# *# *_"
    )


def test_the_example_of_the_template_is_no_part_of_the_prompt():
    encoded = encode_conversation(talk("a", "b"), conv_templates["v0"], make_tokenizer("legacy"), has_image=False)
    assert len(encoded.input_ids) < 150
