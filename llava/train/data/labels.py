"""Token ids and labels of a conversation: the prompt is built in pieces that know whether they are trained on.

The prompt is tokenized once, as for inference; a token's place in the text says which piece it is of. So nothing
depends on how a part of the prompt would be tokenized alone, and nothing on separators or role names inside a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle

Turn = Mapping[str, str]
"""{"from": "human" or "gpt", "value": text}."""


class PromptPiece(NamedTuple):
    """A stretch of the prompt."""

    text: str
    is_target: bool
    """Whether the model learns to write it."""


@dataclass(frozen=True)
class Encoded:
    """A prompt of L tokens; an image is one of them."""

    input_ids: npt.NDArray[np.int64]
    """(L,), IMAGE_TOKEN_INDEX where an image goes."""
    labels: npt.NDArray[np.int64]
    """(L,), IGNORE_INDEX on what is not trained on; always so on the first token, which nothing predicts."""


def encode_conversation(turns: Sequence[Turn], template: Conversation, tokenizer: Any, has_image: bool) -> Encoded:
    """Builds the prompt of a conversation and tokenizes it, with labels on the answers.

    Args:
        turns: question, answer, question, answer, ...
        template: the prompt format; its own messages are not used.
        tokenizer: one that knows the place of each token in the text.
        has_image: whether `<image>` marks an image; otherwise it is text.

    Raises:
        ValueError: the turns do not alternate, or the template or tokenizer cannot be used.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not say where in the text its tokens are, which labels need; load"
            " the tokenizer with llava.model.loading.tokenizer.load_tokenizer, or with AutoTokenizer and use_fast=True"
        )
    check_turns(turns)
    if template.sep_style is SeparatorStyle.SINGLE:
        return _encode_v0(turns, template, tokenizer, has_image)
    return encode_pieces(build_pieces(turns, template), tokenizer, has_image)


def check_turns(turns: Sequence[Turn]) -> None:
    """Checks that questions and answers alternate, from a first question to a last answer.

    Raises:
        ValueError: they do not.
    """
    speakers = [turn["from"] for turn in turns]
    if not speakers or len(speakers) % 2 or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise ValueError(f"the speakers are {speakers}; they must be 'human', 'gpt', 'human', 'gpt', ...")


def build_pieces(turns: Sequence[Turn], template: Conversation) -> list[PromptPiece]:
    """Builds the prompt of a conversation: the text of `Conversation.get_prompt`, where no answer is empty.

    "Plain" templates are the exception: the question's text is dropped, and no separator follows its images. Of
    an empty answer only its end is trained on.

    Args:
        turns: see `encode_conversation`.
        template: any but those of the style SINGLE.

    Raises:
        ValueError: another style, or several questions in a "plain" template.
    """
    build = _BUILDERS.get(template.sep_style)
    if build is None:
        raise ValueError(f"labels of {template.sep_style} are not made from pieces; see encode_conversation")
    return [piece for piece in build([turn["value"] for turn in turns], template) if piece.text]


def _two(texts: Sequence[str], template: Conversation) -> list[PromptPiece]:
    """`USER: question ASSISTANT: answer</s>`: the space belongs to the answer, whose first token often holds it."""
    user, assistant = template.roles
    pieces = [PromptPiece(template.system + template.sep, False)]
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        asked = f"{user}: {question}{template.sep}" if question else f"{user}:"
        pieces += [
            PromptPiece(f"{asked}{assistant}:", False),
            PromptPiece((answer and f" {answer}") + _answer_end(template), True),
        ]
    return pieces


def _mpt(texts: Sequence[str], template: Conversation) -> list[PromptPiece]:
    """`<|im_start|>user\\nquestion<|im_end|><|im_start|>assistant\\nanswer<|im_end|>`; in ChatML with line breaks."""
    user, assistant = template.roles
    line = "\n" if template.sep_style is SeparatorStyle.CHATML else ""
    end = template.sep + line
    pieces = [PromptPiece(template.system + end, False)]
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        asked = question and question + end
        pieces += [PromptPiece(user + line + asked + assistant + line, False), PromptPiece(answer + end, True)]
    return pieces


def _llama_2(texts: Sequence[str], template: Conversation) -> list[PromptPiece]:
    """`[INST] question [/INST] answer </s><s>[INST] ...`; the tokenizer adds the first `<s>` itself."""
    pieces = []
    for i, (question, answer) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
        first = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if i == 0 and template.system else ""
        pieces.append(PromptPiece(f"{template.sep if i else ''}[INST] {first}{question} [/INST]", False))
        pieces.append(PromptPiece((answer and f" {answer} ") + _answer_end(template), True))
    return pieces


def _plain(texts: Sequence[str], template: Conversation) -> list[PromptPiece]:
    """`<image>caption\\n`."""
    if len(texts) != 2:
        raise ValueError(
            f"the conversation has {len(texts)} turns; the template 'plain' takes two: a question, which is dropped,"
            " and a caption. Use another --version"
        )
    question, caption = texts
    images = DEFAULT_IMAGE_TOKEN * question.count(DEFAULT_IMAGE_TOKEN)
    return [PromptPiece(template.system + images, False), PromptPiece(caption + template.sep, True)]


def _answer_end(template: Conversation) -> str:
    return template.sep if template.sep2 is None else template.sep2


_BUILDERS: dict[SeparatorStyle, Callable[[Sequence[str], Conversation], list[PromptPiece]]] = {
    SeparatorStyle.TWO: _two,
    SeparatorStyle.MPT: _mpt,
    SeparatorStyle.LLAMA_2: _llama_2,
    SeparatorStyle.CHATML: _mpt,
    SeparatorStyle.PLAIN: _plain,
}


@dataclass(frozen=True)
class _Tokens:
    """A tokenized text: L tokens."""

    ids: npt.NDArray[np.int64]  # (L,)
    starts: npt.NDArray[np.int64]  # (L,), each token's first character
    ends: npt.NDArray[np.int64]  # (L,), one past its last
    is_text: npt.NDArray[np.bool_]  # (L,), False on images and on what the tokenizer adds, as BOS


def encode_pieces(pieces: Sequence[PromptPiece], tokenizer: Any, has_image: bool) -> Encoded:
    """Tokenizes the pieces' text at once. A token is a target if any of its characters is one.

    A token that crosses the border between pieces is one, too: else the answer's first letter could be lost.
    """
    text = "".join(piece.text for piece in pieces)
    tokens = _tokenize(text, tokenizer, has_image)
    wanted = np.repeat(
        np.array([piece.is_target for piece in pieces], dtype=bool), [len(piece.text) for piece in pieces]
    )
    before = np.concatenate([[0], np.cumsum(wanted)])  # characters of targets in front of each place
    # A token without characters is of the piece that follows: SentencePiece's prefix, a space that offsets leave out.
    starts = np.minimum(tokens.starts, max(len(text) - 1, 0))
    ends = np.maximum(tokens.ends, np.minimum(starts + 1, len(text)))
    is_target = (before[ends] > before[starts]) & tokens.is_text
    return _label(tokens.ids, is_target)


def _label(ids: npt.NDArray[np.int64], is_target: npt.NDArray[np.bool_]) -> Encoded:
    labels = np.where(is_target & (ids != IMAGE_TOKEN_INDEX), ids, IGNORE_INDEX)
    labels[:1] = IGNORE_INDEX
    return Encoded(ids, labels)


def _tokenize(text: str, tokenizer: Any, has_image: bool) -> _Tokens:
    """Tokenizes as `llava.mm_utils.tokenizer_image_token`, or whole where `<image>` is text, and keeps places."""
    stretches = text.split(DEFAULT_IMAGE_TOKEN) if has_image else [text]
    rows: list[tuple[int, int, int, bool]] = []  # id, start, end, is_text of each token
    start, has_bos = 0, False
    for i, stretch in enumerate(stretches):
        if i > 0:
            rows.append((IMAGE_TOKEN_INDEX, start, start + len(DEFAULT_IMAGE_TOKEN), False))
            start += len(DEFAULT_IMAGE_TOKEN)
        found = tokenizer(stretch, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        if i == 0:
            has_bos = tokenizer.bos_token_id is not None and found.input_ids[:1] == [tokenizer.bos_token_id]
        tokens = zip(found.input_ids, found.offset_mapping, found.special_tokens_mask, strict=True)
        repeats = i > 0 and has_bos and found.input_ids[:1] == [tokenizer.bos_token_id]
        kept = list(tokens)[1 if repeats else 0 :]
        rows += [(token, start + first, start + last, not added) for token, (first, last), added in kept]
        start += len(stretch)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return _Tokens(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3] == 1)


def _encode_v0(turns: Sequence[Turn], template: Conversation, tokenizer: Any, has_image: bool) -> Encoded:
    """Encodes `system\\n\\n### Human: question\\n### Assistant: answer\\n### ` with LLaVA's labels, which are its own.

    LLaVA masks the header and each question by a count of tokens, and takes that count from the turn tokenized alone,
    where it has a BOS and a prefix that it lacks inside the prompt. So the first two tokens of a question stay targets,
    as do all roles of answers; and the masks shift by the surplus tokens of every turn before. Checkpoints were trained
    on just these labels; only the counts reproduce them, whatever the tokenizer. Image tokens are never targets.
    """
    roles = dict(zip(("human", "gpt"), template.roles, strict=True))
    header = f"{template.system}\n\n"
    parts = [f"### {roles[turn['from']]}: {turn['value']}\n" for turn in turns]
    ids = _tokenize("".join([header, *parts, "### "]), tokenizer, has_image).ids
    is_target = np.ones(len(ids), dtype=bool)
    begin = len(_tokenize(header, tokenizer, has_image).ids)
    is_target[:begin] = False
    for part, turn in zip(parts, turns, strict=True):
        length = len(_tokenize(part, tokenizer, has_image).ids)
        if turn["from"] == "human":
            is_target[begin + 2 : begin + length] = False
        begin += length
    return _label(ids, is_target)
