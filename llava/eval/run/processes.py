"""The processes that answer a question file together, as `accelerate launch` or torchrun starts them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed.nn  # before a process group, which defaults of its functions would keep alive

from llava.eval.run.inputs.questions import chunk

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


class Processes:
    """This process among those of a run; most runs have only one."""

    def __init__(self, state: PartialState | None = None) -> None:
        """
        Args:
            state: accelerate's; None for a process alone.
        """
        self.state = state
        self.count = state.num_processes if state else 1
        self.index = state.process_index if state else 0

    @classmethod
    def join(cls, args: argparse.Namespace) -> Processes:
        """Joins the processes that a launcher started, and takes a GPU for this one if there are any.

        They only synchronise, over the CPU: the GPU's backend would keep the GPU busy while they wait.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=True, timeout=timedelta(days=30))
        if args.device is None and torch.cuda.is_available():
            args.device = f"cuda:{state.local_process_index % torch.cuda.device_count()}"
        return cls(state)

    @property
    def is_first(self) -> bool:
        """Whether this process checks, starts and ends the answers file."""
        return self.index == 0

    @property
    def part(self) -> int | None:
        """The number of the part of the answers file that this process writes; None if it writes the file itself."""
        return self.index if self.state else None

    def share(self, items: Sequence[T]) -> list[T]:
        """Chooses this process's share."""
        return [items[i] for i in chunk(items, self.count, self.index)]

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.state:
            self.state.wait_for_everyone()

    def leave(self) -> None:
        """Waits for the others, then ends the group."""
        if self.state:
            self.state.wait_for_everyone()
            self.state.destroy_process_group()
