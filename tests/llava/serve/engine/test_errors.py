"""Which exceptions count as out of memory."""

from __future__ import annotations

import torch

from llava.serve.engine.errors import ran_out_of_memory


def test_out_of_memory_errors_of_cpu_and_gpu_are_recognised() -> None:
    message = (
        "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    assert ran_out_of_memory(RuntimeError(message))
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not ran_out_of_memory(RuntimeError("no kernel"))
