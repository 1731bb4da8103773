"""Keeps all cores busy, to measure how code slows down next to other load."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.synchronize import Event

TURN = 0.005  # seconds between two looks at the switch
SETTLE = 0.05  # seconds until all processes have seen it


@contextmanager
def burners() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Starts one process per core; yields a function whose context makes them compute instead of wait."""
    context = multiprocessing.get_context("spawn")
    switch = context.Event()
    processes = [context.Process(target=_burn, args=(switch,), daemon=True) for _ in range(os.cpu_count() or 1)]
    for process in processes:
        process.start()

    @contextmanager
    def busy() -> Iterator[None]:
        switch.set()
        time.sleep(SETTLE)
        try:
            yield
        finally:
            switch.clear()
            time.sleep(SETTLE)

    try:
        with busy():
            time.sleep(1)  # until all have started
        yield busy
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _burn(switch: Event) -> None:
    while switch.wait():
        end = time.perf_counter() + TURN
        while time.perf_counter() < end:
            pass
