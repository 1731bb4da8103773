"""Keys and values of earlier prompts and answers, kept for prompts that begin alike.

A prompt's key has a number for each token and a digest for each image: of its pixels as the tower gets them, its
leaves and its settings. What a key's elements have in common from the start has the same keys and values, whatever
follows; an image is reused whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.vision.prepared_image import PreparedImage
from llava.serve.engine.slots import KeysValues
from qlip.language_positions import ImageSpan
from qlip.patches import CutImage

logger = logging.getLogger(__name__)

PromptKey = tuple[int | bytes, ...]
"""Ids of text tokens and digests of images, in order."""


def prompt_key(ids: Sequence[int], images: Sequence[PreparedImage]) -> PromptKey:
    """Computes the key of a prompt, up to the first image in which the question decides what is split.

    Args:
        ids: The prompt, IMAGE_TOKEN_INDEX in place of each image.
        images: The prompt's images.
    """
    key: list[int | bytes] = []
    left = iter(images)
    for token in ids:
        if token == IMAGE_TOKEN_INDEX:
            image = next(left)
            if image.question is not None:
                break
            key.append(digest_image(image))
        else:
            key.append(token)
    return tuple(key)


def digest_image(image: PreparedImage) -> bytes:
    """Computes a digest of all that an image's tokens in the language model depend on."""
    digest = hashlib.sha256(repr((image.settings, image.tiles)).encode())
    _update(digest, image.image)
    return digest.digest()


def _update(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy())
    elif isinstance(part, CutImage):
        digest.update(repr(part.leaves.grid).encode())
        for tensor in (part.leaves.boxes, part.patches, part.thumbnail):
            _update(digest, tensor)
    elif isinstance(part, list | tuple):
        for each in part:
            _update(digest, each)
    else:
        digest.update(repr(part).encode())


def count_tokens(key: PromptKey, spans: Sequence[ImageSpan]) -> int:
    """Counts the tokens of a key's elements, its images' spans given in order."""
    images = sum(isinstance(element, bytes) for element in key)
    return len(key) - images + sum(span.count for span in spans[:images])


@dataclass(frozen=True)
class Prefix:
    """The start of a prompt, with its keys and values."""

    key: PromptKey = ()
    spans: tuple[ImageSpan, ...] = ()
    """Spans of its images."""
    states: KeysValues | None = None
    """None where there are no tokens."""

    @property
    def tokens(self) -> int:
        """Tokens in the language model."""
        return count_tokens(self.key, self.spans)

    def cut(self, elements: int) -> Prefix:
        """Cuts it to its first elements; shares the memory."""
        key = self.key[:elements]
        if self.states is None or not key:
            return Prefix()
        spans = self.spans[: sum(isinstance(element, bytes) for element in key)]
        tokens = count_tokens(key, spans)
        return Prefix(key, spans, [(keys[:, :tokens], values[:, :tokens]) for keys, values in self.states])


class PrefixCache:
    """Prefixes within a number of bytes; the least recently used are dropped. A larger one is logged once."""

    def __init__(self, most_bytes: int) -> None:
        """
        Args:
            most_bytes: Most bytes of all keys and values; 0 keeps none.
        """
        self.most_bytes = most_bytes
        self.bytes = 0
        self._warned = False
        self._kept: dict[PromptKey, tuple[Prefix, int]] = {}  # the most recently used last

    def __len__(self) -> int:
        """Number of prefixes."""
        return len(self._kept)

    def find(self, key: PromptKey) -> Prefix:
        """Finds the longest start of a prompt whose keys and values are known, all but its last token at most."""
        best, length = None, 0
        for kept in self._kept:
            if kept[length : length + 1] == key[length : length + 1]:  # else it is no better
                common = count_shared(kept, key)
                best, length = (kept, common) if common > length else (best, length)
        if best is None:
            return Prefix()
        self._kept[best] = self._kept.pop(best)
        return self._kept[best][0].cut(min(length, len(key) - 1))

    def store(self, key: PromptKey, spans: Sequence[ImageSpan], size: int, read: Callable[[], KeysValues]) -> None:
        """Keeps the keys and values of a key's tokens, in place of those that it continues, unless they are too large.

        Args:
            key: Key of the prompt and the answer.
            spans: Spans of its images.
            size: Bytes of the keys and values.
            read: Copies them; called if they are kept.
        """
        longer = next((kept for kept in self._kept if _starts(kept, key)), None)
        if longer is not None:
            self._kept[longer] = self._kept.pop(longer)
            return
        if size <= self.most_bytes:
            for kept in [kept for kept in self._kept if _starts(key, kept)]:
                self._drop(kept)
            while self.bytes + size > self.most_bytes:
                self._drop(next(iter(self._kept)))
            self._kept[key] = (Prefix(key, tuple(spans), read()), size)
            self.bytes += size
        elif not self._warned:
            self._warned = True
            logger.warning(
                "the keys and values of a prompt and its answer take %d MiB, more than the %d MiB for earlier prompts:"
                " one that continues it runs in full; set --prefix-cache-mib %d or more",
                -(-size // 2**20),
                self.most_bytes // 2**20,
                -(-size // 2**20),
            )

    def clear(self) -> bool:
        """Drops all prefixes; false if there were none."""
        had = bool(self._kept)
        self._kept.clear()
        self.bytes = 0
        return had

    def make_room(self) -> bool:
        """Drops all prefixes, since memory has run out; false if there were none."""
        dropped = self.clear()
        if dropped:
            logger.warning("out of memory; dropped the keys and values of earlier prompts")
        return dropped

    def _drop(self, key: PromptKey) -> None:
        self.bytes -= self._kept.pop(key)[1]


def count_shared(first: Sequence[object], second: Sequence[object]) -> int:
    """Counts the elements at the beginning that two sequences share."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)


def _starts(key: PromptKey, start: PromptKey) -> bool:
    """Whether a key begins with another."""
    last = len(start) - 1
    return key[last : last + 1] == start[-1:] and key[: len(start)] == start
