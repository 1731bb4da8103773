"""Tokenizers that labels are tested with, and what the tests read from them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.loading.tokenizer import load_tokenizer

DATA = Path(__file__).parents[2] / "data" / "tokenizer"
LEGACY: dict[str, dict[str, Any]] = {"legacy": {"legacy": True}, "not legacy": {"legacy": False}, "absent": {}}
NAMES = (*LEGACY, "byte level", "byte level, trimmed")


@cache
def make_tokenizer(name: str) -> Any:
    """SentencePiece's of LLaVA, one for each value of `legacy`; or byte-level BPE without BOS, as ChatML models have.

    "trimmed" leaves leading spaces out of offsets, as GPT-2's tokenizer does.
    """
    if name.startswith("byte level"):
        return _make_byte_level(["a red ball", "ASSISTANT: USER: Human Assistant INST"], "trimmed" in name)
    with TemporaryDirectory() as folder:
        shutil.copy(DATA / "tokenizer.model", folder)
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        settings = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, **tokens, **LEGACY[name]}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(folder)


def _make_byte_level(texts: Sequence[str], is_trimmed: bool, splits_words: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits_words)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=is_trimmed)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>", "</s>"]
    tokenizer.train_from_iterator(
        texts * 5, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def make_blank_joining_tokenizer() -> PreTrainedTokenizerFast:
    """One whose vocabulary has two line breaks as one token, as those of today's models."""
    return _make_byte_level(["\n\n"], is_trimmed=False, splits_words=False)


def write(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, with every space: SentencePiece's prefix is one, too."""
    if tokenizer.bos_token_id is None:
        return tokenizer.decode(ids)
    data = b""
    for token in tokenizer.convert_ids_to_tokens(ids):
        byte = re.fullmatch(r"<0x(..)>", token)
        data += bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
    return data.decode()


def written_targets(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[str]:
    """The text of each run of tokens that are trained on."""
    return [write(tokenizer, run) for run in _runs(ids, labels)]


def _runs(ids: Sequence[int], labels: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for token, label in zip([*ids, 0], [*labels, IGNORE_INDEX], strict=True):
        if label != IGNORE_INDEX:
            assert label == token
            run.append(int(token))
        elif run:
            yield run
            run = []


def star(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> str:
    """The tokens of a prompt, those that are trained on with a star."""
    names = ["<image>" if i == IMAGE_TOKEN_INDEX else tokenizer.convert_ids_to_tokens(int(i)) for i in ids]
    plain = {"\u2581": "_", "\u0120": "_", "\u010a": "\\n", "<0x0A>": "\\n"}
    for old, new in plain.items():
        names = [name.replace(old, new) for name in names]
    names = [re.sub("<0x(..)>", lambda found: chr(int(found[1], 16)), name) for name in names]
    return " ".join(("*" if label != IGNORE_INDEX else "") + name for name, label in zip(names, labels, strict=True))


def talk(*texts: str) -> list[Mapping[str, str]]:
    """A conversation of these texts, question first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
