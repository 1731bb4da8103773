"""What a cache must know for a conversation to continue without its images: next positions, and the bias on keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qlip.integrations.subclasses import MadeSubclass, make_subclass

ATTRIBUTE = "qlip_continuation"
"""Attribute of transformers' caches that holds the `Continuation`."""


class Continuation(NamedTuple):
    """What follows the keys and values of prompts with images."""

    images: int
    """Number of keys up to the end of the last image; later positions rise by 1."""
    length: int
    """Keys when this was saved."""
    end: Tensor
    """(B,): the first position after them."""
    bias: Tensor | None
    """float (B, K0): added to the attention logits of the first K0 keys; None adds nothing."""

    def positions(self, count: int, mask: Tensor | None = None) -> Tensor:
        """Computes the positions (B, count) of tokens after the keys.

        Args:
            count: Q, of the new tokens.
            mask: (B, Q) or with the keys (B, K + Q), nonzero on real tokens; padding takes no position. By default all
                are real.
        """
        if mask is None or mask.shape[1] not in (count, self.length + count):
            return self.end[:, None] + torch.arange(count, device=self.end.device)
        real = mask[:, -count:].to(self.end.device) != 0
        return self.end[:, None] + (real.cumsum(1) - 1).clamp(min=0)

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> Continuation:
        """Changes the rows of all that is saved by one function, which takes and returns (rows, ...)."""
        bias = self.bias if self.bias is None else change(self.bias.expand(len(self.end), -1))
        return self._replace(end=change(self.end), bias=bias)

    def merge_rows(self, each: int) -> Continuation | None:
        """Keeps every `each`-th row; None if the rows merged into one differ."""
        merged = self.map_rows(lambda part: part[::each])
        again = merged.map_rows(lambda part: part.repeat_interleave(each, dim=0))
        is_same = torch.equal(again.end, self.end) and (
            self.bias is None or again.bias is None or bool((again.bias == self.bias).all())
        )
        return merged if is_same else None


class RowsMixin(MadeSubclass):
    """Mixed into a cache's class: keeps the rows of its `Continuation` in step with the keys and values."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts the rows in another order, as the cache's own class does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._map_rows(lambda part: part[beam_idx.to(part.device)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows, as the cache's own class does."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._map_rows(lambda part: part[indices.to(part.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row, as the cache's own class does."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._map_rows(lambda part: part.repeat_interleave(repeats, dim=0))

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if (saved := getattr(self, ATTRIBUTE, None)) is not None:
            setattr(self, ATTRIBUTE, saved.map_rows(change))


@torch.compiler.disable  # compiled code can't change a class
def _track_rows(cache: Any) -> None:
    """Gives one cache the subclass of `RowsMixin`; other caches of its class are untouched."""
    if not isinstance(cache, RowsMixin):
        cache.__class__ = make_subclass(RowsMixin, type(cache))  # type: ignore[arg-type]


def note_continuation(cache: Any, positions: Tensor, bias: Tensor | None, end: Tensor | None) -> None:
    """Records on a cache what follows a prompt with images that was just run, so that text can continue it.

    Args:
        cache: transformers' cache; None notes nothing.
        positions: (B, Q), of these tokens.
        bias: float (B, K0), on the first keys.
        end: (B,), first position after a prompt; None: it is the one after the last token's.
    """
    if cache is None:
        return
    length, after = int(cache.get_seq_length()), positions[:, -1].floor() + 1
    after = after if end is None else torch.maximum(after, end.to(after))
    _track_rows(cache)
    setattr(cache, ATTRIBUTE, Continuation(length - _count_steps(positions, after), length, after, bias))


def _count_steps(positions: Tensor, after: Tensor) -> int:
    """Counts the last tokens (B, Q) whose positions rise by 1, up to `after`, in every row."""
    steps = torch.cat([positions, after[:, None].to(positions)], dim=1).diff(dim=1) == 1
    return int(steps.flip(1).cumprod(1).sum(1).min())


def read_continuation(cache: Any, rows: int, mask: Tensor | None = None, each: int = 1) -> Continuation | None:
    """Reads what follows a cache's keys; None where no prompt with images was run.

    Args:
        cache: transformers' cache, or None.
        rows: B, of the new tokens.
        mask: (B, K + Q), nonzero on real tokens, of keys and new tokens; by default all keys are real that came after
            the prompts with images.
        each: rows of the cache that each row of new tokens will be repeated to, as `generate` does for beams.

    Raises:
        ValueError: the cache was cropped within an image, or holds another number of rows.
    """
    saved: Continuation | None = getattr(cache, ATTRIBUTE, None)
    if saved is None:
        return None
    if (length := int(cache.get_seq_length())) == 0:  # it was reset
        delattr(cache, ATTRIBUTE)
        return None
    if length < saved.images:
        raise ValueError(
            f"the cache was cropped to {length} tokens, and the last image ends at {saved.images}; give all that the"
            " attached processor returns again"
        )
    merged = saved.merge_rows(each) if len(saved.end) == each * rows else None
    if merged is None:
        more = f", each for {each} answers" if each > 1 else ""
        raise ValueError(f"the cache holds {len(saved.end)} rows with images, and {rows} are given{more}")
    grown: int | Tensor = length - saved.length
    if mask is not None and mask.shape[1] > length > saved.length:  # padding among earlier answers and questions
        grown = (mask[:, saved.length : length] != 0).sum(1).to(merged.end.device)
    return merged._replace(length=length, end=merged.end + grown)


def padding_mask(mask: Any) -> Tensor | None:
    """Returns an attention mask (B, K + Q); None for those of other shapes, which may hide more than padding."""
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def complete_inputs(
    cache: Any, new: Tensor, positions: Tensor | None, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Completes the positions and the bias of new tokens (B, Q, ...) after a prompt with images; else as given.

    `mask` is (B, K + Q), nonzero on real tokens.

    Raises:
        ValueError: see `read_continuation`.
    """
    saved: Continuation | None = getattr(cache, ATTRIBUTE, None)
    if saved is None or (positions is not None and (bias is not None or saved.bias is None)):
        return positions, bias
    follows = read_continuation(cache, len(new), mask)
    if follows is None:
        return positions, bias
    return (
        follows.positions(new.shape[1], mask) if positions is None else positions,
        follows.bias if bias is None else bias,
    )
