"""Counts what training processes: samples, tokens, padding; and the rates of a log line."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from llava.constants import IGNORE_INDEX
from llava.train.left_out import LeftOutSamples, Skipped

logger = logging.getLogger(__name__)

Gather = Callable[[Any], list[Any]]
"""Collects one picklable object per process; every process must call it and gets all of them, in order of rank."""


@dataclass(frozen=True)
class BatchCounts:
    """What one batch holds. Batches add up: `a + b`."""

    samples: int = 0
    """Samples in the batch, without those left out."""
    text_tokens: int = 0
    visual_tokens: int = 0
    target_tokens: int = 0
    """Tokens that the loss is computed on."""
    padded_tokens: int = 0
    """Size of the padded batch in the language model: rows x longest row."""
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    def of(cls, samples: Sequence[Mapping[str, Any]], packs: Sequence[int] | None = None) -> BatchCounts:
        """Counts the samples of a batch.

        Args:
            samples: as the data set gives them, those left out (`{"skipped": Skipped}`) included.
            packs: the row of each sample that is not left out; by default each has a row to itself.

        Raises:
            ValueError: `packs` is not of these samples.
        """
        used = [sample for sample in samples if "skipped" not in sample]
        if packs is not None and len(packs) != len(used):
            raise ValueError(f"packs has {len(packs)} entries, but {len(used)} samples of the batch are used")
        text = [len(sample["input_ids"]) - len(sample["images"]) for sample in used]
        visual = [sample["visual_tokens"] for sample in used]
        rows: Counter[int] = Counter()
        for row, *parts in zip(range(len(used)) if packs is None else packs, text, visual, strict=True):
            rows[row] += sum(parts)
        return cls(
            samples=len(used),
            text_tokens=sum(text),
            visual_tokens=sum(visual),
            target_tokens=sum(int((sample["labels"][1:] != IGNORE_INDEX).sum()) for sample in used),
            padded_tokens=len(rows) * max(rows.values(), default=0) or 1,  # a batch without samples has one token
            skipped=tuple(sample["skipped"] for sample in samples if "skipped" in sample),
        )

    def __add__(self, other: BatchCounts) -> BatchCounts:
        return BatchCounts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def gather_objects(item: Any) -> list[Any]:
    """Collects one picklable object per process of `torch.distributed`; a list of one where it is not in use."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [item]
    items: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(items, item)
    return items


class Throughput:
    """Adds up the batches of all processes and computes the rates of a log line.

    The clock starts with the first batch, so that no rate counts the time in which a run gets ready.
    """

    def __init__(
        self,
        max_bad_samples: int,
        gather: Gather = gather_objects,
        clock: Callable[[], float] = time.perf_counter,
        malformed: Sequence[str] = (),
        unused: int = 0,
    ) -> None:
        """
        Args:
            max_bad_samples: most malformed or unreadable samples that a run leaves out.
            gather: collects one object per process.
            clock: time in seconds.
            malformed: what is wrong with samples that the data set left out when it was opened.
            unused: samples that are dropped before training: these, and those that batches by tokens leave out.
        """
        self.left_out = LeftOutSamples(max_bad_samples, malformed, unused)
        self._gather = gather
        self._clock = clock
        self._target_tokens = self._samples = 0  # of all processes
        self._waiting = BatchCounts()  # of this process, not gathered yet; without `skipped`
        self._interval = BatchCounts()  # of all processes, since the last report
        self._began: float | None = None
        self._peak = 0.0

    def start(self) -> None:
        """Starts the clock and the memory's peak again."""
        self._began = self._clock()
        self._peak = 0.0
        if _has_memory_counter():
            torch.accelerator.reset_peak_memory_stats()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time inside out of the rates, for evaluations and checkpoints."""
        begin = self._clock()
        try:
            yield
        finally:
            if self._began is not None:
                self._began += self._clock() - begin

    def add(self, counts: BatchCounts) -> None:
        """Counts a batch of this process, and warns of samples that are left out for the first time."""
        if self._began is None:
            self.start()
        for skipped in counts.skipped:
            self.left_out.add(skipped)
        self._waiting += replace(counts, skipped=())

    def update(self) -> None:
        """Adds the batches of all processes to the totals; every process must call it at the same step.

        Raises:
            ValueError: many samples were left out, and none was used.
        """
        mine = (self._waiting, self.left_out.take(), peak_memory_gib())
        self._waiting = BatchCounts()
        for counts, left_out, memory in self._gather(mine):
            self._interval += counts
            self._target_tokens += counts.target_tokens
            self._samples += counts.samples
            self.left_out.merge(left_out)
            self._peak = max(self._peak, memory or 0.0)
        self.left_out.check_used(self._target_tokens, is_end=False)

    def finish(self) -> None:
        """Counts what is not counted yet, as training ends; every process must call it.

        Raises:
            ValueError: no sample was trained on, or too many bad ones.
        """
        self.update()
        self.left_out.check_bad()
        self.left_out.check_used(self._target_tokens, is_end=True)

    def has_trained(self) -> bool:
        """Whether anything was trained on, after `update`; warns if all samples were left out."""
        self.update()
        if self.left_out.dropped and not self._target_tokens:
            logger.warning("no checkpoint is written: %s", self.left_out.describe_none_used())
        return bool(self._target_tokens or not self.left_out.dropped)

    def describe_dropped(self) -> str:
        """Describes how many samples were left out, summed over processes and epochs; empty if none was."""
        dropped = self.left_out.dropped
        times = f"samples were left out {dropped} times, in every epoch again, and used {self._samples} times"
        return f"{times}; {self.left_out.count_kinds()}" if dropped else ""

    def report(self) -> dict[str, float]:
        """Computes a log line's numbers since the last report; every process must call it at the same step.

        Returns:
            `samples_per_second`, `text_tokens_per_second`, `visual_tokens_per_second`, `target_tokens_per_second` of
            all processes together; `padding_share`, the share of the padded batches that is padding, in [0, 1];
            `target_tokens` and `dropped_samples` since training began (in each epoch again); `memory_gib`,
            the highest peak of a process, see `peak_memory_gib`.

        Raises:
            ValueError: many samples were left out, and none was used.
        """
        self.update()
        counts, self._interval = self._interval, BatchCounts()
        now = self._clock()
        seconds = max(now - (now if self._began is None else self._began), 1e-9)
        real = counts.text_tokens + counts.visual_tokens
        peak = self._peak
        self.start()
        return {
            "samples_per_second": round(counts.samples / seconds, 3),
            "text_tokens_per_second": round(counts.text_tokens / seconds, 1),
            "visual_tokens_per_second": round(counts.visual_tokens / seconds, 1),
            "target_tokens_per_second": round(counts.target_tokens / seconds, 1),
            "padding_share": round(1 - real / counts.padded_tokens, 4) if counts.padded_tokens else 0.0,
            "target_tokens": self._target_tokens,
            "dropped_samples": self.left_out.dropped,
            "memory_gib": round(peak, 3),
        }

    def state(self) -> dict[str, Any]:
        """Totals of all processes at the last `update` or `report`, to be saved with a checkpoint as JSON."""
        return {"target_tokens": self._target_tokens, "samples": self._samples, **self.left_out.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues with the totals of a checkpoint."""
        self._target_tokens = int(state["target_tokens"])
        self._samples = int(state.get("samples", 0))  # checkpoints of earlier versions lack it
        self.left_out.restore(state)


def peak_memory_gib() -> float | None:
    """Measures this process's peak memory in GiB: the GPU's since `Throughput.start`, on a CPU resident memory.

    The peak of resident memory is that of the process's whole life; None where the system has no such count.
    """
    if _has_memory_counter() and (peak := torch.accelerator.max_memory_allocated()):
        return peak / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _has_memory_counter() -> bool:
    """Whether this machine has an accelerator that keeps its peak of memory; Apple's does not."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is not None and accelerator.type != "mps"
