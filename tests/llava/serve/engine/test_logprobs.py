"""The tokens of an answer's log-probabilities as text and bytes, whatever tokens a model chooses."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.model.loading.tokenizer import load_tokenizer
from llava.serve.engine.generate import Row
from llava.serve.engine.logprobs import AnswerLogprob, LogprobRecorder, StepLogprobs
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path

END = 2
UNTOLD = {0, 1, END}  # the special tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A SentencePiece tokenizer with byte fallback, as every LLaVA has."""
    return load_tokenizer(demo_model_path())


def said(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[str, deque[AnswerLogprob]]:
    """The answer that some tokens are, and its log-probabilities."""
    pieces: list[str] = []
    row = Row(torch.tensor([1]), Sampling(0, stop=stop, logprobs=1), tokenizer, frozenset([END]), pieces.append)
    for i, token in enumerate([*ids, END]):
        row.take(token, StepLogprobs(-float(i), ((token, -float(i)),)))
    assert row.finish_reason == "stop"
    return "".join(pieces), row.logprobs


@settings(max_examples=40)
@given(st.text(max_size=30))
def test_the_bytes_of_the_tokens_join_to_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    content, tokens = said(tokenizer, [token for token in ids if token not in UNTOLD])
    assert b"".join(bytes(token.token.bytes or ()) for token in tokens) == content.encode()
    assert [token.token.logprob for token in tokens] == [-float(i) for i in range(len(tokens))]


@settings(max_examples=40)
@given(st.lists(st.integers(259, 607), max_size=20))
def test_the_texts_of_whole_tokens_join_to_the_text(tokenizer: Any, ids: list[int]) -> None:
    content, tokens = said(tokenizer, ids)
    assert "".join(token.token.text for token in tokens) == content
    starts = [sum(len(t.token.text) for t in list(tokens)[:i]) for i in range(len(tokens))]
    assert [token.start for token in tokens] == starts
    assert [token.top for token in tokens] == [(token.token,) for token in tokens]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 700).filter(lambda token: token != END), max_size=20))
def test_any_tokens_are_listed_one_by_one(tokenizer: Any, ids: list[int]) -> None:
    """Special tokens, bytes that form no character and ids of no token included."""
    content, tokens = said(tokenizer, ids)
    assert len(tokens) == len(ids)
    assert all(0 <= token.start <= len(content) for token in tokens)


def test_bytes_of_a_character_are_told_byte_by_byte(tokenizer: Any) -> None:
    euro, a = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "\u20ac".encode()], 300
    content, tokens = said(tokenizer, [*euro, a])
    assert content.startswith("\u20ac")
    assert [(token.token.bytes, token.token.text, token.start) for token in list(tokens)[:3]] == [
        ((byte,), "\ufffd", 0) for byte in b"\xe2\x82\xac"
    ]
    assert tokens[3].start == 1


def test_a_word_behind_an_unfinished_first_character_keeps_its_blank(tokenizer: Any) -> None:
    first, word = tokenizer.convert_tokens_to_ids(["<0xF0>", "\u2581b"])
    content, tokens = said(tokenizer, [first, word])
    assert content == "\ufffd" + tokens[1].token.text
    assert tokens[1].token.bytes == tuple(tokens[1].token.text.encode()) and tokens[1].token.text.startswith(" ")


def test_a_byte_that_is_a_character_is_told_as_such(tokenizer: Any) -> None:
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    _, tokens = said(tokenizer, [300, newline])
    assert (tokens[1].token.text, tokens[1].token.bytes) == ("\n", (10,))


def test_a_special_token_has_its_name_and_no_bytes(tokenizer: Any) -> None:
    content, tokens = said(tokenizer, [0, 300])
    assert (tokens[0].token.text, tokens[0].token.bytes) == ("<unk>", None)
    assert content == tokens[1].token.text


# The recorder


def test_impossible_tokens_have_the_least_value_that_json_holds() -> None:
    recorder = LogprobRecorder([Sampling(0, logprobs=3)], pytest.fail)
    recorder(None, torch.tensor([[0.0, -math.inf, -math.inf]]))
    (step,) = recorder.take([1]).values()
    assert step.chosen == -9999.0
    assert [value for _, value in step.top] == [0.0, -9999.0, -9999.0]


def test_a_vocabulary_smaller_than_the_alternatives_is_listed_whole() -> None:
    recorder = LogprobRecorder([Sampling(0), Sampling(0, logprobs=20)], pytest.fail)
    recorder(None, torch.zeros(2, 3))
    (step,) = recorder.take([0, 2]).values()
    assert sorted(token for token, _ in step.top) == [0, 1, 2]
    assert step.chosen == pytest.approx(-math.log(3))


def test_steps_are_taken_in_their_order() -> None:
    """transformers may hand tokens over one step late."""
    recorder = LogprobRecorder([Sampling(0, logprobs=0)], pytest.fail)
    for peak in (1.0, 2.0):
        recorder(None, torch.tensor([[peak, 0.0]]))
    first, second = (recorder.take([0])[0].chosen for _ in range(2))
    assert first < second
    assert recorder.take([0]) == {}


def test_a_row_whose_logprobs_fail_is_reported_alone() -> None:
    errors: dict[int, Exception] = {}
    recorder = LogprobRecorder([Sampling(0), Sampling(0, logprobs=1)], errors.__setitem__)
    recorder(None, torch.zeros(1, 3))  # has no second row
    assert recorder.take([0, 0]) == {}
    assert list(errors) == [1]
