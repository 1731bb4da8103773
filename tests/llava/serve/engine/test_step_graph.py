"""Steps in captured slots have the logits of steps that are run kernel by kernel, while rows come and go.

There is no GPU here: what would be captured is run again each time, on the same inputs; `tests/gpu` captures it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import step_graph
from llava.serve.engine.running import RunningRows
from llava.serve.engine.step_graph import PATIENCE, StepGraph, can_capture
from tests.llava.model.language_models import PIXELS, PROMPT, load_both
from tests.llava.serve.engine.stepping import add, run_rows, step, weigh

PROMPTS = [PROMPT, PROMPT[:4] + [33] * 90, [1, 20, 33]]
GROWTH = 30
STEPS = 17 + GROWTH


class Captures:
    """Stands in for the GPU: counts captures and replays."""

    def __init__(self) -> None:
        self.count = self.replays = 0

    def __call__(self, work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        self.count += 1

        def replay() -> Tensor:
            self.replays += 1
            return work()

        return replay


def load_new(kind: str = "llama 3") -> Any:
    """A model of its own: a model whose steps could not be captured is not tried again."""
    return load_both(kind)[1]


load = cache(load_new)


@cache
def run_plain(kind: str = "llama 3", weighted: bool = False) -> tuple[list[ImageTokens], list[Tensor], list[int]]:
    """The images, the logits of every step that is run kernel by kernel, and the lengths of the rows at the end."""
    model = load(kind)
    images = weigh(model.encode_tokens(PIXELS)) if weighted else model.encode_tokens(PIXELS)
    plain = RunningRows(model)
    return images, run_rows(plain, images, PROMPTS, GROWTH), plain.cache.lengths


@pytest.mark.parametrize(
    ("kind", "weighted"),
    [("mistral, window", False), ("qwen2, window", True), ("llama 3", False), ("llama 3", True), ("mpt", False)],
)
def test_logits_are_those_of_steps_run_kernel_by_kernel(kind, weighted):
    images, expected, lengths = run_plain(kind, weighted)
    model, captures = load(kind), Captures()
    captured = RunningRows(model)
    captured._graph = StepGraph(model, captures)
    found = run_rows(captured, images, PROMPTS, GROWTH)
    assert len(found) == len(expected) == STEPS
    for number, (own, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5, msg=lambda text, at=number: f"step {at}: {text}")
    assert captures.count == 4  # for two rows, for three, for longer slots, and after all had gone
    assert captures.replays == STEPS - captures.count * PATIENCE
    assert captured.cache.lengths == lengths


@torch.inference_mode()
def test_a_long_row_that_leaves_takes_its_weights_along():
    """The slots shrink below the number of keys that its weights were for."""
    model = load()
    images = weigh(model.encode_tokens(PIXELS))
    found: list[list[Tensor]] = []
    for graph in (StepGraph(model, Captures()), None):
        running = RunningRows(model)
        running._graph = graph
        add(running, PROMPT[:4], images[:1])
        add(running, PROMPT + [33] * 300, images)
        logits = [*step(running, 4)]
        running.remove(1)
        logits += step(running, 6)
        running.cache.shrink()
        found.append([*logits, *step(running, 6)])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_what_cannot_be_captured_is_run_kernel_by_kernel(caplog, error):
    """Also in the batches that follow, without another try."""
    images, expected, _ = run_plain()
    model, tries = load_new(), []

    def fail(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        tries.append(device)
        raise error("not permitted when stream is capturing")

    captured = RunningRows(model)
    captured._graph = StepGraph(model, fail)
    with caplog.at_level(logging.WARNING):
        found = run_rows(captured, images, PROMPTS, GROWTH)
    assert all(torch.equal(own, other) for own, other in zip(found, expected, strict=True))
    assert [record.message for record in caplog.records] == [
        "steps run kernel by kernel, since no CUDA graph could be captured: not permitted when stream is capturing"
    ]
    assert tries == [torch.device("cpu")]


def test_where_no_memory_is_left_the_next_slots_are_tried_again(caplog):
    """Twice, the second time without what the allocator has kept."""
    images, expected, _ = run_plain()
    model, captures, tries = load_new(), Captures(), []

    def capture(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        tries.append(len(tries))
        if len(tries) <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return captures(work, device)

    captured = RunningRows(model)
    captured._graph = StepGraph(model, capture)
    found = run_rows(captured, images, PROMPTS, GROWTH)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
    assert (len(tries), captures.count) == (5, 3)  # the first slots have no graph
    assert "out of memory" in caplog.text


class FakeModel(SimpleNamespace):
    """What `can_capture` reads of a model."""

    __hash__ = object.__hash__


def model_on(*devices: str, rope: dict[str, Any] | None = None, hook: bool = False, **options: Any) -> Any:
    """A model whose parameters are on these devices."""
    module = SimpleNamespace(_hf_hook=None) if hook else SimpleNamespace()
    text = SimpleNamespace(rope_parameters=rope)
    return FakeModel(
        parameters=lambda: [SimpleNamespace(device=torch.device(device)) for device in devices],
        modules=lambda: [module],
        config=SimpleNamespace(get_text_config=lambda: text),
        **options,
    )


def test_models_of_one_gpu_whose_steps_are_alike_are_captured(monkeypatch):
    assert can_capture(model_on("cuda:0", "cuda:0"))
    assert can_capture(model_on("cuda:0", rope={"rope_type": "llama3", "rope_theta": 5e5}))
    assert not can_capture(model_on("cpu")) and not can_capture(model_on("cuda:0", "cpu"))
    assert not can_capture(model_on("cuda:0", "cuda:1"))
    assert not can_capture(model_on("cuda:0", hook=True)) and not can_capture(model_on("cuda:0", is_quantized=True))
    assert not can_capture(model_on("cuda:0", rope={"rope_type": "dynamic", "factor": 2.0}))
    nested = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}
    assert not can_capture(model_on("cuda:0", rope=nested))
    monkeypatch.setenv(step_graph.SWITCH, "0")
    assert not can_capture(model_on("cuda:0"))
