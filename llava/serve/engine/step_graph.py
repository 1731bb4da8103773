"""A CUDA graph of the step that gives every running row its next token.

For one token of a 7B model the CPU starts some 1500 kernels, which takes it several times as long as they take the GPU.
A graph starts them together. It knows its memory by address, so it holds for the slots that it was captured with only.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llava.serve.engine.prefill import attention_masks
from llava.serve.engine.slots import SlotCache, Writing

logger = logging.getLogger(__name__)

PATIENCE = 2
"""Steps in the same slots before a capture, which costs about as much: requests that join may move the slots."""
SWITCH = "LLAVA_CUDA_GRAPHS"
"""Environment variable; 0 lets every step run kernel by kernel."""
CHANGING_ROTATIONS = ("dynamic", "longrope")
"""transformers' rotary embeddings that look at the positions, on the CPU, before they choose their frequencies."""

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


def can_capture(model: Any) -> bool:
    """Whether a step of a model is the same work whatever the tokens are, on one GPU.

    Quantised weights, and weights that move between devices, are left out.
    """
    if os.environ.get(SWITCH, "1") == "0" or getattr(model, "is_quantized", False):
        return False
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return False
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False
    rotations = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [kind for kind in rotations.values() if isinstance(kind, dict)] or [rotations]
    return all(kind.get("rope_type", "default") not in CHANGING_ROTATIONS for kind in kinds)


def capture_on_gpu(work: Callable[[], Tensor]) -> Replay:
    """Captures work on the GPU, without running it; gives what runs it, into the same result each time."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the GPU meanwhile
        try:
            result = work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class StepGraph:
    """The step of a batch in its present slots: all of them, those that are free included, up to their last token."""

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
        self._usable = True

    def run(
        self, cache: SlotCache, tokens: Sequence[int], positions: Sequence[int], bias: Tensor | None
    ) -> Tensor | None:
        """Runs a token of each row, and counts it in the cache.

        Args:
            cache: The rows' keys and values.
            tokens: The last one of each row.
            positions: Of these.
            bias: float32 (B, K0), added to the attention logits of the rows' first keys; None for none. Another object
                for another bias.

        Returns:
            The logits behind each, (B, V); None where nothing was run, and the step is to be run kernel by kernel.
        """
        cache.reserve(len(tokens), max(cache.lengths) + 1)  # as every step does
        slots = [slots for layer in cache.layers for slots in (layer.keys, layer.values)]
        if not self._fits(slots, bias):
            self.forget()
            self._slots, self._biased = [weakref.ref(each) for each in slots], bias is not None
        self._steps += 1
        if not self._usable or self._steps <= PATIENCE:
            return None
        if self._replay is None and not self._begin(cache):
            return None
        self._fill(cache, tokens, positions, bias)
        logits = self._replay()
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits[: len(tokens)].clone()  # the next step overwrites them

    def forget(self) -> None:
        """Frees the graph."""
        self._slots, self._steps, self._replay, self._read, self._bias = [], 0, None, (), None

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
            return self.model(
                input_ids=tokens,
                attention_mask=masks,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

        try:
            self._replay = self._capture(step)
        except RuntimeError as error:  # torch's for CUDA, out of memory included
            logger.warning("steps run kernel by kernel, since no CUDA graph could be captured: %s", error)
            self._usable = False
            self.forget()
        return self._usable

    def _fill(self, cache: SlotCache, tokens: Sequence[int], positions: Sequence[int], bias: Tensor | None) -> None:
        """Sets what the graph reads. A free slot reads and writes its first place, which its next row overwrites."""
        inputs, key_bias, _ = self._read
        values = torch.zeros(inputs.shape, dtype=torch.int64)
        values[:, : len(tokens), 0] = torch.tensor([list(tokens), list(positions), list(cache.lengths)])
        inputs.copy_(values, non_blocking=True)
        if bias is not None and bias is not self._bias:
            key_bias.zero_()
            key_bias[: bias.shape[0], : bias.shape[1]] = bias
            self._bias = bias
