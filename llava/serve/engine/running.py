"""The rows that are being generated: a token at a time for all of them, in slots of keys and values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.serve.engine.prefill import run_tokens
from llava.serve.engine.slots import SlotCache
from llava.serve.engine.step_graph import StepGraph, can_capture
from llava.serve.engine.streams import Stream, TokenChooser

S = TypeVar("S", bound=Stream)


class RunningRows(Generic[S]):
    """Rows whose prompts have been run, with their keys and values; they are added and removed between tokens."""

    def __init__(self, model: Any, most_tokens: int = sys.maxsize, joins: bool = True) -> None:
        """
        Args:
            model: A LLaVA model for which `can_continue` holds.
            most_tokens: Most tokens of all slots, see `SlotCache.bound`.
            joins: Whether rows are added while others run.
        """
        self.model = model
        self.streams: list[S] = []
        """Row by row."""
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, most=most_tokens, joins=joins)
        """Keys and values of the same rows."""
        self._bias: Tensor | None = None  # float32 (B, K0), of the rows' keys; None: no bias
        self._chooser: TokenChooser | None = None  # of the rows, until they change
        self._graph = StepGraph(model) if can_capture(model) else None

    def add(self, streams: Sequence[S], cache: SlotCache, bias: Tensor | None) -> None:
        """Adds rows whose prompts have been run; all of them, or none if it raises.

        Args:
            streams: Row by row.
            cache: Their keys and values, which belong to this batch then.
            bias: float32 (B, K0), added to the attention logits of their first keys; None if there is no bias.
        """
        biases = [*self._rows_of(self._bias, len(self.streams)), *self._rows_of(bias, len(streams))]
        joined = pad_sequence(biases, True)
        self.cache.append(cache)
        self.streams += streams
        self._set_bias(joined)

    def run(self) -> Tensor:
        """Runs each row's last token; returns the next-token logits (B, V). It may be repeated after an error."""
        tokens = [stream.tokens[-1] for stream in self.streams]
        positions = [stream.position for stream in self.streams]
        if self._graph is not None:
            logits = self._graph.run(self.cache, tokens, positions, self._bias)
            if logits is not None:
                return logits
        ids, places = torch.tensor([tokens, positions], device=self.model.device)[:, :, None]
        return run_tokens(self.model, self.cache, [1] * len(tokens), self._bias, places, input_ids=ids)

    def choose(self, logits: Tensor) -> None:
        """Chooses the rows' next tokens from the logits of `run`, and appends them to the answers."""
        self._chooser = self._chooser or TokenChooser(self.model, self.streams, logits.device)
        self._chooser.take(logits)

    def ended(self) -> list[int]:
        """Lists the rows whose answers have ended, the last one first, in which order they can be removed."""
        return [row for row, stream in enumerate(self.streams) if stream.row.finished()][::-1]

    def remove(self, row: int) -> None:
        """Removes a row as `SlotCache.remove` does: the last one takes its place."""
        self.cache.remove(row)
        if self._graph is not None and not self.cache.lengths:
            self._graph.forget()
        self.streams[row] = self.streams[-1]
        self.streams.pop()
        self._chooser = None
        if self._bias is not None:
            self._bias[row] = self._bias[-1]
            self._set_bias(self._bias[:-1])

    def clear(self) -> None:
        """Removes all rows, and frees their memory."""
        self.cache.clear()
        self.streams, self._bias, self._chooser = [], None, None
        if self._graph is not None:
            self._graph.forget()

    def _rows_of(self, bias: Tensor | None, count: int) -> list[Tensor]:
        return [torch.zeros(0, device=self.model.device)] * count if bias is None else list(bias)

    def _set_bias(self, bias: Tensor) -> None:
        """Sets the bias of the rows' keys, and forgets what was computed for other rows."""
        self._bias = bias if bias.any() else None
        self._chooser = None
