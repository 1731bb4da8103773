"""Tokens become the text that decoding them all at once gives, up to the first stop string and not a letter further."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.model.loading.tokenizer import load_tokenizer
from llava.serve.engine.detokenize import Detokenizer, StopFilter, until_stop
from llava.utils import demo_model_path
from tests.llava.serve.fakes import BytesTokenizer

# Tokens to text


def pieces(tokenizer: object, ids: list[int]) -> list[str]:
    stream = Detokenizer(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    """A SentencePiece tokenizer with byte fallback, as every LLaVA has."""
    return load_tokenizer(demo_model_path())


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_the_pieces_of_a_text_join_to_it(tokenizer: object, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


BYTES = st.integers(3, 258)


@settings(max_examples=40)
@given(st.lists(st.one_of(BYTES, st.integers(0, 607)), max_size=30))
def test_the_pieces_of_any_tokens_join_to_their_decoding(tokenizer: object, ids: list[int]) -> None:
    """Special tokens, and bytes that form no character, included."""
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert pieces(BytesTokenizer(), BytesTokenizer.bytes("a\u20ac!")) == ["a", "", "", "\u20ac", "!", ""]


def test_a_character_that_stays_unfinished_is_told_at_the_end() -> None:
    assert pieces(BytesTokenizer(), BytesTokenizer.bytes("\u20ac")[:2]) == ["", "", "\ufffd"]


# Stop strings


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("one ## two", ["###"]),
        ("one ### two", ["###"]),
        ("####", ["###"]),
        ("one #", ["###"]),
        ("abcabd end", ["abd", "end"]),
        ("aaab", ["aab"]),
        ("one", []),
        ("", ["###"]),
    ],
)
def test_text_passes_up_to_the_first_stop_string_however_it_is_cut(text: str, stops: list[str], size: int) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    expected = re.split("|".join(map(re.escape, stops)), text)[0] if stops else text
    passed = list(until_stop(pieces, stops))
    assert "".join(passed) == expected
    assert all(passed)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    text, passed, held = "a#b##c", "", []

    def one_by_one() -> Iterator[str]:
        for i, character in enumerate(text):
            yield character
            held.append(i + 1 - len(passed))

    for piece in until_stop(one_by_one(), ["###"]):
        passed += piece
    assert held == [0, 1, 0, 1, 2, 0]


def test_nothing_follows_a_stop_string() -> None:
    stop = StopFilter(["##", ""])
    assert [stop.push(piece) for piece in ("a#", "#b", "c")] == ["a", "", ""]
    assert stop.stopped
    assert stop.finish() == ""
