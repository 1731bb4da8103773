"""Packs several conversations about one image after their common prefix.

A row is `<s> system text USER: `, the image tokens, and then one segment after another, each a question with its
answer. A segment sees the prefix and itself, and its positions begin where the prefix ends: the decoder computes for
it exactly what it would compute for that conversation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from playground.questions import KINDS, Question
from playground.vocabulary import prompt

PREFIX = -1
PADDING = -2


@dataclass(frozen=True)
class PackedQuestions:
    """The segments of a batch of rows; all tensors int64 (B, T), padded on the right."""

    tokens: Tensor
    """Token ids."""
    segments: Tensor
    """Number of the conversation within its row; `PADDING` beyond the last."""
    offsets: Tensor
    """Place of the token in its segment, from 0."""
    targets: Tensor
    """The next id where it belongs to an answer, `</s>` included; `IGNORE_INDEX` elsewhere."""
    kinds: Tensor
    """Index into `KINDS` of the conversation."""

    def to(self, device: torch.device) -> PackedQuestions:
        """Copies the tensors to another device."""
        return PackedQuestions(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class Packer:
    """Turns questions into token ids, the very ids that a chat produces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.head = torch.tensor(tokenizer(prompt("")[0]).input_ids)
        """Ids of the prefix in front of the image, `<s>` first: int64 (S,)."""

    def pack(self, questions: Sequence[Sequence[Question]]) -> PackedQuestions:
        """Packs one row for each inner sequence."""
        flat = [item for row in questions for item in row]
        prompts = [prompt(item.text)[1] for item in flat]
        whole = [f"{text} {item.answer}</s>" for text, item in zip(prompts, flat, strict=True)]
        ids = [row[1:] for row in self.tokenizer(whole).input_ids]  # [1:] drops <s>, said once in the head
        starts = [len(row) - 1 for row in self.tokenizer(prompts).input_ids]
        rows, taken = [], 0
        for row in questions:
            segments = [
                self._segment(number, KINDS.index(item.kind), ids[taken + number], starts[taken + number])
                for number, item in enumerate(row)
            ]
            rows.append(torch.cat(segments))
            taken += len(row)
        padded = pad_sequence(rows, batch_first=True, padding_value=PADDING)
        tokens, segments, offsets, targets, kinds = padded.unbind(-1)
        blank = segments == PADDING
        return PackedQuestions(
            tokens.masked_fill(blank, 0),
            segments,
            offsets.masked_fill(blank, 0),
            targets.masked_fill(blank, IGNORE_INDEX),
            kinds.masked_fill(blank, 0),
        )

    @staticmethod
    def _segment(number: int, kind: int, ids: list[int], answer_start: int) -> Tensor:
        """Builds int64 (T, 5): token, segment, offset, target, kind."""
        tokens = torch.tensor(ids)
        targets = torch.full_like(tokens, IGNORE_INDEX)
        targets[answer_start - 1 : -1] = tokens[answer_start:]
        same = torch.ones_like(tokens)
        return torch.stack([tokens, same * number, torch.arange(len(ids)), targets, same * kind], dim=-1)


def segment_mask(prefix: int, image: int, segments: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Builds the additive attention mask of image tokens and segments after a prefix of text.

    Args:
        prefix: number of text tokens in front of the image, which are keys only.
        image: number of image tokens.
        segments: int64 (B, T).
        dtype: type of the mask.

    Returns:
        (B, 1, image + T, prefix + image + T): 0 where the key is earlier and in front of the segments or in the same.
    """
    owner = torch.cat([segments.new_full((len(segments), prefix + image), PREFIX), segments], dim=1)
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    seen = causal & ((owner[:, None, :] == PREFIX) | (owner[:, None, :] == owner[:, :, None]))
    mask = torch.zeros(seen.shape, dtype=dtype, device=owner.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, prefix:]


def answer_logits(
    decoder: LlamaForCausalLM, head: Tensor, image: Tensor, places: Tensor, span: int, packed: PackedQuestions
) -> tuple[Tensor, Tensor]:
    """Computes the decoder's logits at answer tokens.

    Args:
        decoder: the language model.
        head: int64 (S,), ids in front of the image.
        image: float (B, N, D), image tokens.
        places: int64 (N,), their positions counted from the image's first.
        span: positions the image takes; text continues at `S + span`.
        packed: the conversations.

    Returns:
        logits (A, V) and targets int64 (A,) of the A answer tokens.
    """
    batch, count, _ = image.shape
    start = len(head)
    cache = decoder.model(head[None], use_cache=True).past_key_values  # the same for every row: computed once
    cache.batch_repeat_interleave(batch)
    hidden = decoder.model(
        inputs_embeds=torch.cat([image, decoder.get_input_embeddings()(packed.tokens)], dim=1),
        attention_mask=segment_mask(start, count, packed.segments, image.dtype),
        position_ids=start + torch.cat([places.to(image.device).expand(batch, -1), span + packed.offsets], dim=1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, count:]
    due = packed.targets != IGNORE_INDEX
    return decoder.lm_head(hidden[due]), packed.targets[due]


def answers_right(logits: Tensor, targets: Tensor, packed: PackedQuestions) -> tuple[Tensor, Tensor]:
    """Judges whole answers: right if every token of theirs is.

    Args:
        logits: (A, V), from `answer_logits`.
        targets: int64 (A,), likewise.
        packed: the conversations.

    Returns:
        float (C,), 1 for right, and the kinds int64 (C,) of the C conversations.
    """
    due = packed.targets != IGNORE_INDEX
    rows = torch.arange(len(due), device=due.device)[:, None] * due.shape[1]
    conversations, owner = (rows + packed.segments)[due].unique(return_inverse=True)
    right = torch.ones(len(conversations), device=due.device)
    right.scatter_reduce_(0, owner, (logits.argmax(-1) == targets).float(), "amin")
    return right, torch.zeros_like(conversations).scatter_(0, owner, packed.kinds[due])
