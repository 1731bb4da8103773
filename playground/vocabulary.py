"""The demo model's tokenizer: a small SentencePiece vocabulary in Llama's manner, and its prompt.

Words of the prompt, the questions and the answers are mostly single pieces; any other text falls back to bytes.
"""

from __future__ import annotations

import io
import itertools
import json
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from playground.objects import COLOURS, SHAPES
from playground.questions import WORDINGS

SIZE = 608
"""Pieces in the vocabulary of the recipe `joint`, the 256 bytes and three special tokens included."""

LEAST_TRAINER = (0, 2, 3)
"""SentencePiece's version from which on a required character need not occur in the sentences."""


def prompt(question: str) -> tuple[str, str]:
    """Builds the vicuna_v1 prompt in front of the image, and after it up to where the answer begins."""
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{question}")
    conversation.append_message(conversation.roles[1], None)
    before, after = conversation.get_prompt().split(DEFAULT_IMAGE_TOKEN)
    return before, after


def train_vocabulary(folder: Path, sentences: Iterable[str] | None = None, size: int = SIZE) -> None:
    """Writes `tokenizer.model` and `tokenizer_config.json` into `folder`.

    Args:
        folder: where to write.
        sentences: what to learn pieces from; by default the questions of the recipe `joint`.
        size: number of pieces.

    Raises:
        ValueError: the installed SentencePiece ends the process when a required character does not occur.
    """
    if (version := tuple(map(int, sentencepiece.__version__.split(".")[:3]))) < LEAST_TRAINER:
        least = ".".join(map(str, LEAST_TRAINER))
        raise ValueError(
            f"a vocabulary cannot be trained with sentencepiece {'.'.join(map(str, version))}; install {least} or later"
        )
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus() if sentences is None else sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _corpus() -> Iterator[str]:
    """Yields sentences to learn pieces from; a quote before a question stands for the line break before it in use."""
    before, after = prompt("")
    yield from itertools.repeat(before + after.strip(), 200)
    for colour, shape in itertools.product(COLOURS, SHAPES):
        name = f"{colour} {shape}"
        words = {"colour": colour, "shape": shape, "name": name, "first": name, "second": name}
        for wording in itertools.chain.from_iterable(WORDINGS.values()):
            yield f'"{wording.format(**words)} ASSISTANT: yes no left right a {name}, {name} and'
