"""Times of work on a device, synchronised, and in turns of several ways."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def synchronise(device: str) -> None:
    """Waits until all work on the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Work, device: str) -> float:
    """Times a call, with all that it starts on the device."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return (time.perf_counter() - start) * 1000


def interleave(ways: Mapping[str, Work], device: str, turns: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Times each way once in every turn, in milliseconds, so that all of them meet the same state of the machine."""
    for work in ways.values():
        for _ in range(warm_up):
            work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, work in ways.items():
            times[name].append(milliseconds(work, device))
    return times


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Computes the median over turns of a turn's ratio."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def count_launches(work: Work, device: str) -> dict[str, int]:
    """Counts a call's kernels and copies on the GPU, and how often the CPU waits for it; empty on a CPU."""
    if torch.device(device).type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    synchronise(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        synchronise(device)
    launches = sum(str(event.device_type).endswith("CUDA") for event in profiled.events())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("called a synchronizing" in str(warning.message) for warning in caught)
    return {"launches": launches, "waits": waits}
