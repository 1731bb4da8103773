"""Counts what training processes: samples, tokens, padding, samples left out; and the rates of a log line."""

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
from llava.train.left_out import LeftOutLog

logger = logging.getLogger(__name__)

SHOWN_REASONS = 3
"""Bad samples that the error at the end of a run names."""

UNUSED_AT_FIRST = 100
"""Samples that are left out before the run ends, if none at all could be used."""

Gather = Callable[[Any], list[Any]]
"""Collects one picklable object per process; every process must call it and gets all of them, in order of rank."""


@dataclass(frozen=True)
class Skipped:
    """A sample that is left out of training."""

    reason: str
    """Names the sample; equal for each time that it is left out."""
    is_bad: bool
    """Whether the sample is malformed or unreadable; otherwise it is sound, but too long."""


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
        self.max_bad_samples = max_bad_samples
        self._gather = gather
        self._clock = clock
        self._target_tokens = self._samples = 0  # of all processes, as are the next two
        self._unused = self._dropped = unused
        self._bad: dict[str, None] = dict.fromkeys(malformed)
        self._left_out = LeftOutLog("left out", "dropped_samples")
        self._waiting = BatchCounts()  # of this process, not gathered yet; without `skipped`
        self._waiting_dropped = 0
        self._waiting_bad: dict[str, None] = {}
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
        """Counts a batch of this process, and warns of samples that are left out for the first time.

        Raises:
            ValueError: too many bad samples.
        """
        if self._began is None:
            self.start()
        for skipped in counts.skipped:
            self._waiting_dropped += 1
            if skipped.is_bad and skipped.reason not in self._bad:
                self._waiting_bad[skipped.reason] = None
            self._left_out.add(skipped.reason)
        self._waiting += replace(counts, skipped=())
        self._check({**self._bad, **self._waiting_bad})

    def update(self) -> None:
        """Adds the batches of all processes to the totals; every process must call it at the same step.

        Raises:
            ValueError: too many bad samples in all processes together.
        """
        mine = (self._waiting, self._waiting_dropped, tuple(self._waiting_bad), peak_memory_gib())
        self._waiting, self._waiting_dropped, self._waiting_bad = BatchCounts(), 0, {}
        for counts, dropped, bad, memory in self._gather(mine):
            self._interval += counts
            self._target_tokens += counts.target_tokens
            self._samples += counts.samples
            self._dropped += dropped
            self._bad.update(dict.fromkeys(bad))
            self._peak = max(self._peak, memory or 0.0)
        self._check(self._bad)
        if self._dropped - self._unused >= UNUSED_AT_FIRST:
            self._check_used()

    def finish(self) -> None:
        """Counts what is not counted yet, as training ends; every process must call it.

        Raises:
            ValueError: no sample was trained on, or too many bad ones.
        """
        self.update()
        self._check_used()

    def has_trained(self) -> bool:
        """Whether anything was trained on, after `update`; warns if all samples were left out."""
        self.update()
        if self._dropped and not self._target_tokens:
            logger.warning("no checkpoint is written: %s", self._say_none_used())
        return bool(self._target_tokens or not self._dropped)

    def describe_dropped(self) -> str:
        """Describes how many samples were left out, summed over processes and epochs; empty if none was."""
        times = f"samples were left out {self._dropped} times, in every epoch again, and used {self._samples} times"
        return f"{times}; {self._count_kinds()}" if self._dropped else ""

    def report(self) -> dict[str, float]:
        """Computes a log line's numbers since the last report; every process must call it at the same step.

        Returns:
            `samples_per_second`, `text_tokens_per_second`, `visual_tokens_per_second`, `target_tokens_per_second` of
            all processes together; `padding_share`, the share of the padded batches that is padding, in [0, 1];
            `target_tokens` and `dropped_samples` since training began (in each epoch again); `memory_gib`,
            the highest peak of a process, see `peak_memory_gib`.

        Raises:
            ValueError: too many bad samples in all processes together.
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
            "dropped_samples": self._dropped,
            "memory_gib": round(peak, 3),
        }

    def state(self) -> dict[str, Any]:
        """Totals of all processes at the last `update` or `report`, to be saved with a checkpoint as JSON."""
        counts = {"target_tokens": self._target_tokens, "samples": self._samples, "dropped_samples": self._dropped}
        return {**counts, "bad_samples": list(self._bad)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues with the totals of a checkpoint."""
        self._target_tokens = int(state["target_tokens"])
        self._samples = int(state.get("samples", 0))  # checkpoints of earlier versions lack it
        self._dropped = int(state["dropped_samples"])
        self._bad = dict.fromkeys(state["bad_samples"])
        self._left_out.skip(self._bad)

    def _check_used(self) -> None:
        if self._dropped and not self._target_tokens:
            example = f", for example {min(self._left_out.named)}" if self._left_out.named else ""
            raise ValueError(
                f"{self._say_none_used()}{example}. {self._count_kinds()}. Check --image_folder and --model_max_length"
            )

    def _say_none_used(self) -> str:
        return f"no sample could be trained on; samples were left out {self._dropped} times over all epochs"

    def _count_kinds(self) -> str:
        return f"{len(self._bad)} of them are malformed or unreadable, any others too long, or left out as measured"

    def _check(self, bad: Mapping[str, None]) -> None:
        if len(bad) > self.max_bad_samples:
            first = "; ".join(list(bad)[:SHOWN_REASONS])
            raise ValueError(
                f"{len(bad)} samples cannot be used, and --max_bad_samples allows {self.max_bad_samples}: {first}"
                f"{'; ...' if len(bad) > SHOWN_REASONS else ''}. Correct or remove them, or raise --max_bad_samples"
            )


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
