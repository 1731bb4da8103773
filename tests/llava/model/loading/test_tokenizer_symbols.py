"""A SentencePiece model with user-defined symbols, as Yi's of llava-v1.6-34b: one token each, in any text."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.loading.tokenizer import load_tokenizer

SYMBOLS = ["<|Human|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|unused1|>", "<|unused10|>"]
CONTROL = {"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
IM_END = len(CONTROL) + SYMBOLS.index("<|im_end|>")
ADDED = {**CONTROL, "<|im_end|>": IM_END}
"""What its tokenizer_config.json lists; the other symbols are the model's alone."""

PIECES = [*SYMBOLS, *ADDED, " ", "  ", "\n", "<|", "user\n", "what is", "<|unused"]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=7).map("".join)


def train() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what is in the picture of the user", "an assistant answers"] * 20),
        model_writer=written, vocab_size=330, model_type="bpe", hard_vocab_limit=False, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        unk_piece="<unk>", bos_piece="<|startoftext|>", eos_piece="<|endoftext|>", user_defined_symbols=SYMBOLS,
    )  # fmt: skip
    return written.getvalue()


MODEL = train()
SPIECES = SentencePieceProcessor(model_proto=MODEL)


def without_prefix() -> SentencePieceProcessor:
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(MODEL)
    proto.normalizer_spec.add_dummy_prefix = False
    return SentencePieceProcessor(model_proto=proto.SerializeToString())


BARE = without_prefix()


def write_folder(folder: Path, legacy: bool) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(MODEL)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    values = {
        "added_tokens_decoder": {str(index): {"content": token, **flags} for token, index in ADDED.items()},
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    home = tmp_path_factory.mktemp("yi")
    return {legacy: load_tokenizer(write_folder(home / str(legacy), legacy)) for legacy in (False, True)}


def ids_by_sentencepiece(text: str, legacy: bool) -> list[int]:
    """SentencePiece on the stretches between added tokens, the first alone with a space in front unless `legacy`."""
    if not legacy and text:
        text = " " + text.replace("\u2581", " ")
    ids: list[int] = []
    for stretch in re.split("(" + "|".join(map(re.escape, ADDED)) + ")", text):
        ids += [ADDED[stretch]] if stretch in ADDED else (SPIECES if legacy else BARE).encode(stretch)
    stripped = any(text.startswith(" " + token) for token in ADDED)
    return ids[1:] if not legacy and stripped else ids


def is_lone(text: str, legacy: bool) -> bool:
    """Whether a stretch is one symbol and nothing else: the only text whose prefix is not SentencePiece's."""
    stretches = re.split("|".join(map(re.escape, ADDED)), text) if legacy else [text]
    return any(stretch in SYMBOLS for stretch in stretches)


@pytest.mark.parametrize("legacy", [False, True])
@settings(deadline=None, max_examples=60)
@given(text=TEXTS)
def test_any_text_has_sentencepieces_ids(tokenizers: dict[bool, Any], legacy: bool, text: str) -> None:
    if not is_lone(text, legacy):
        assert tokenizers[legacy](text).input_ids == ids_by_sentencepiece(text, legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_lone_symbol_has_its_id(tokenizers: dict[bool, Any], legacy: bool) -> None:
    for symbol in SYMBOLS:
        assert tokenizers[legacy](symbol).input_ids == [SPIECES.piece_to_id(symbol)]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_prompt_of_chatml_has_one_token_for_each_mark(tokenizers: dict[bool, Any], legacy: bool) -> None:
    conversation = conv_templates["chatml_direct"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nwhat is it")
    conversation.append_message(conversation.roles[1], None)
    before, after = conversation.get_prompt().split("<image>")
    pieces = [ids_by_sentencepiece(part, legacy) for part in (before, after)]
    ids = tokenizer_image_token(conversation.get_prompt(), tokenizers[legacy])
    assert ids == [*pieces[0], -200, *pieces[1]]
    assert ids.count(SPIECES.piece_to_id("<|im_start|>")) == 3 and ids.count(IM_END) == 2


@pytest.mark.parametrize("legacy", [False, True])
@settings(deadline=None, max_examples=40)
@given(ids=st.lists(st.integers(3, SPIECES.get_piece_size() - 1).filter(lambda index: index != IM_END), max_size=10))
def test_any_ids_decode_as_sentencepiece_decodes_them(
    tokenizers: dict[bool, Any], legacy: bool, ids: list[int]
) -> None:
    assert tokenizers[legacy].decode([*ids, IM_END], skip_special_tokens=True) == SPIECES.decode(ids)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_saved_tokenizer_has_the_same_ids(tokenizers: dict[bool, Any], tmp_path: Path, legacy: bool) -> None:
    """And lists the same added tokens, so that LLaVA's own code splits a text at no others."""
    tokenizers[legacy].save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {token["content"]: int(index) for index, token in saved.items()} == ADDED
    again, backend = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("<|im_start|>user\nwhat <|im_sep|> is<|im_end|><|im_start|>assistant\n", " what<|endoftext|>is"):
        assert again(text).input_ids == backend.encode(text).ids == ids_by_sentencepiece(text, legacy)
