"""A CUDA graph of the step that gives every running row its next token.

For one token of a 7B model the CPU starts some 1500 kernels, which takes it several times as long as they take the GPU.
A graph starts them together. It knows its memory by address, so it holds for the slots that it was captured with only.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.engine.prefill import attention_masks, last_logits, rotates_by_length
from llava.serve.engine.slots import SlotCache, Writing

logger = logging.getLogger(__name__)

PATIENCE = 2
"""Steps in the same slots before a capture, which costs about as much: requests that join may move the slots."""
SWITCH = "LLAVA_CUDA_GRAPHS"
"""Environment variable; 0 lets every step run kernel by kernel."""

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor], torch.device], Replay]

_CAPTURING = threading.Lock()  # a process may capture one graph at a time
_UNFIT: weakref.WeakSet[Any] = weakref.WeakSet()  # models of which a capture has failed


def can_capture(model: Any) -> bool:
    """Whether a step of a model is the same work whatever the tokens are, on one GPU.

    Quantised weights, and weights that move between devices, are left out; so is a model of which a capture has failed.
    """
    if os.environ.get(SWITCH, "1") == "0" or getattr(model, "is_quantized", False) or model in _UNFIT:
        return False
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return False
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False
    return not rotates_by_length(model)


class _Capturer:
    """Captures on one GPU, on one stream, into the memory that earlier graphs have left free."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.last: torch.cuda.CUDAGraph | None = None  # its memory is shared with the next

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        """See `capture_on_gpu`."""
        with _CAPTURING, torch.cuda.device(self.device):
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                pool = None if self.last is None else self.last.pool()
                # Other threads may use the GPU meanwhile.
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    result = work()
                finally:
                    graph.capture_end()
            current.wait_stream(self.stream)
            self.last = graph

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


_capturer = lru_cache(_Capturer)


def capture_on_gpu(work: Callable[[], Tensor], device: torch.device) -> Replay:
    """Captures work on a GPU, without running it; returns what runs it, into the same result each time.

    Graphs share memory, so that they must be replayed on one stream, and a result be read before the next replay.
    """
    return _capturer(device).capture(work)


class StepGraph:
    """The step of a batch in its present slots: all of them, those that are free included, up to their last token.

    The model's weights must stay where they are as long as there are rows.
    """

    def __init__(self, model: Any, capture: Capture = capture_on_gpu) -> None:
        """
        Args:
            model: A LLaVA model for which `can_capture` holds.
            capture: See `capture_on_gpu`.
        """
        self.model, self._capture = model, capture
        self._slots: list[weakref.ref[Tensor]] = []  # keys and values that the graph is for
        self._biased = False
        self._steps = 0  # in these slots
        self._replay: Replay | None = None
        self._read: tuple[Tensor, ...] = ()  # what the graph reads: inputs, bias of the keys, numbers of the rows
        self._bias: Tensor | None = None  # that was filled in last
        self._refused = False  # no memory was left for a graph of these slots

    def run(
        self, cache: SlotCache, tokens: Sequence[int], positions: Sequence[int], bias: Tensor | None
    ) -> Tensor | None:
        """Runs a token of each row, and counts it in the cache.

        Args:
            cache: The rows' keys and values.
            tokens: The last one of each row.
            positions: The position of each of these tokens.
            bias: float32 (B, K0), added to the attention logits of the rows' first keys; None if there is no bias.
                Another object for another bias.

        Returns:
            The next-token logits of each row, (B, V); None where nothing was run, and the step is to be run kernel by
            kernel.
        """
        cache.reserve(len(tokens), max(cache.lengths) + 1)  # as every step does
        slots = [slots for layer in cache.layers for slots in (layer.keys, layer.values)]
        if not self._fits(slots, bias):
            self.forget()
            self._slots, self._biased = [weakref.ref(each) for each in slots], bias is not None
        self._steps += 1
        if self._refused or self._steps <= PATIENCE or self.model in _UNFIT:
            return None
        if self._replay is None and not self._begin(cache):
            return None
        self._fill(cache, tokens, positions, bias)
        logits = self._replay()
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits[: len(tokens)].clone()  # the next step overwrites them

    def forget(self) -> None:
        """Drops the graph; its memory serves the next one."""
        self._slots, self._steps, self._replay, self._read, self._bias = [], 0, None, (), None
        self._refused = False

    def _fits(self, slots: Sequence[Tensor], bias: Tensor | None) -> bool:
        same = len(slots) == len(self._slots) and all(
            ref() is each for ref, each in zip(self._slots, slots, strict=True)
        )
        return same and self._biased == (bias is not None)

    def _begin(self, cache: SlotCache) -> bool:
        """Captures the step; false if it cannot be captured."""
        rows, length = cache.capacity
        device = cache.layers[0].keys.device
        inputs = torch.zeros(3, rows, 1, dtype=torch.int64, device=device)
        key_bias = torch.zeros(rows, length if self._biased else 0, device=device)
        tokens, positions, places = inputs
        numbers = torch.arange(rows, device=device)
        writing = Writing([0] * rows, [1] * rows, numbers, places[:, 0], length)
        self._read = inputs, key_bias, numbers

        def step() -> Tensor:
            for layer in cache.layers:
                layer.writing = writing
            masks = attention_masks(self.model, places, length, key_bias)
            return last_logits(self.model, cache, masks, positions, input_ids=tokens)

        failure: Exception | None = None
        for _ in range(2):
            try:
                self._replay = self._capture(step, device)
                return True
            except Exception as error:
                failure = error.with_traceback(None)  # which holds the tensors that did not fit
            if not ran_out_of_memory(failure):
                break
            torch.cuda.empty_cache()  # a capture cannot take what the allocator has kept of earlier tensors
        logger.warning("steps run kernel by kernel, since no CUDA graph could be captured: %s", failure)
        if ran_out_of_memory(failure):
            self._refused, self._read = True, ()
        else:
            _UNFIT.add(self.model)
            self.forget()
        return False

    def _fill(self, cache: SlotCache, tokens: Sequence[int], positions: Sequence[int], bias: Tensor | None) -> None:
        """Sets what the graph reads. A free slot reads and writes its first place, which its next row overwrites."""
        inputs, key_bias, _ = self._read
        values = torch.zeros(inputs.shape, dtype=torch.int64)
        values[:, : len(tokens), 0] = torch.tensor([list(tokens), list(positions), list(cache.lengths)])
        inputs.copy_(values, non_blocking=True)
        if bias is not None and bias is not self._bias:
            key_bias.zero_()
            width = min(bias.shape[1], key_bias.shape[1])  # a longer row may have left
            key_bias[: len(bias), :width] = bias[:, :width]
            self._bias = bias
