"""Text that no tokenizer takes, and what is said about it."""

from __future__ import annotations

import pytest

from llava.mm_utils import tokenizer_image_token
from llava.text import check_encodable
from tests.llava.serve.fakes import BytesTokenizer


@pytest.mark.parametrize("text", ["", "plain", "é 猫 🦙"])
def test_whole_characters_are_encodable(text: str) -> None:
    check_encodable("it", text)


@pytest.mark.parametrize("half", ["\ud800", "\udcff"])
def test_half_a_character_is_named_with_its_place(half: str) -> None:
    with pytest.raises(ValueError, match=f"the answer contains a lone surrogate, {half!r}".replace("\\", r"\\")):
        check_encodable("the answer", f"a {half} b")


def test_a_prompt_is_checked_before_the_tokenizer_gets_it() -> None:
    with pytest.raises(ValueError, match=r"the prompt contains a lone surrogate, '\\ud800'"):
        tokenizer_image_token("<image>\na \ud800 b", BytesTokenizer())
