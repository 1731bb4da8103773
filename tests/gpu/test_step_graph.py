"""A captured step has the logits of one that is run kernel by kernel, while rows come and go; and it is used."""

from __future__ import annotations

import pytest
import torch

from llava.model.builder import load_pretrained_model
from llava.serve.engine.running import RunningRows
from llava.serve.engine.step_graph import StepGraph
from tests.gpu.cases import error
from tests.llava.model.language_models import PIXELS, PROMPT, make_oracle, write_checkpoint
from tests.llava.serve.engine.stepping import run_rows, weigh

PROMPTS = [PROMPT, PROMPT[:4], [1, 20, 33]]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mistral, window", "llama 3"])
@torch.inference_mode()
def test_captured_steps_have_the_logits_of_others(tmp_path, gpu, kind, dtype, weighted):
    folder = write_checkpoint(tmp_path, kind, make_oracle(kind))
    model = load_pretrained_model(folder, device=gpu, torch_dtype=dtype)[1]
    images = model.encode_tokens(PIXELS.to(gpu, dtype))
    images = weigh(images) if weighted else images
    captured, plain = RunningRows(model), RunningRows(model)
    plain._graph, replays = None, []
    take = captured._graph.run

    def run(*inputs):
        logits = take(*inputs)
        replays.append(logits is not None)
        return logits

    assert isinstance(captured._graph, StepGraph)
    captured._graph.run = run
    found, expected = (run_rows(running, images, PROMPTS) for running in (captured, plain))
    assert sum(replays) > 100
    for own, other in zip(found, expected, strict=True):
        assert error(own, other) < (1e-5 if dtype == torch.float32 else 5e-2)
