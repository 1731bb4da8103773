"""The tokenizer: Llama's ids and manners, any text there and back, the demo's words whole."""

from __future__ import annotations

import pytest
import sentencepiece

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from playground.objects import COLOURS, SHAPES
from playground.questions import WORDINGS
from playground.vocabulary import prompt, train_vocabulary

TEXTS = [
    "What colour is the circle?",
    "two  spaces ",
    "line\nbreak\ttab",
    "emoji \U0001f600 and é, 漢字, \U0001f469\u200d\U0001f680",
    "~!@#$%^&*()_+{}|:<>?`-=[]\\;',./\"",
    "\x00\x7f",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_goes_there_and_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_sentencepiece_behind_a_bos(tokenizer, vocabulary, text):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "tokenizer.model"))
    assert tokenizer(text).input_ids == [processor.bos_id(), *processor.encode(text)]


def test_special_tokens_have_llamas_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert tokenizer("yes</s>").input_ids[-1] == 2


@pytest.mark.parametrize("word", [*COLOURS, *SHAPES, "left", "right", "yes", "no", "picture", "objects"])
def test_the_demos_words_are_single_pieces(tokenizer, word):
    assert tokenizer.tokenize(word) == [f"▁{word}"]


@pytest.mark.parametrize("wording", [wording for group in WORDINGS.values() for wording in group])
def test_no_question_needs_bytes_but_for_its_line_break(tokenizer, wording):
    pieces = tokenizer.tokenize(prompt(wording)[1])
    assert [piece for piece in pieces if piece.startswith("<0x")] == ["<0x0A>"]


def test_the_two_parts_of_a_prompt_tokenise_as_the_whole_does(tokenizer):
    before, after = prompt("What is in the picture?")
    whole = tokenizer_image_token(f"{before}<image>{after}", tokenizer, IMAGE_TOKEN_INDEX)
    assert whole == [*tokenizer(before).input_ids, IMAGE_TOKEN_INDEX, *tokenizer(after).input_ids[1:]]


def test_training_the_vocabulary_twice_gives_the_same_file(vocabulary, tmp_path):
    train_vocabulary(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (vocabulary / "tokenizer.model").read_bytes()


def test_a_trainer_that_would_end_the_process_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sentencepiece.__version__", "0.2.2")
    with pytest.raises(ValueError, match=r"sentencepiece 0\.2\.2; install 0\.2\.3 or later"):
        train_vocabulary(tmp_path / "vocabulary")
