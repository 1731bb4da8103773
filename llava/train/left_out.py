"""Samples that training or its evaluation leaves out: named in the log, counted, and too many of them refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

NAMED = 100
"""Samples that a process names."""

SHOWN_REASONS = 3
"""Bad samples that the error at the end of a run names."""

UNUSED_AT_FIRST = 100
"""Samples that are left out before the run ends, if none at all could be used."""


@dataclass(frozen=True)
class Skipped:
    """A sample that is left out of training."""

    reason: str
    """Names the sample; equal for each time that it is left out."""
    is_bad: bool
    """Whether the sample is malformed or unreadable; otherwise it is sound, but too long."""
    index: int | None = None
    """Its number in the data set, by which a resumed run looks at it again."""


@dataclass(frozen=True)
class LeftOutCounts:
    """What one process has left out since the last count of all processes."""

    dropped: int = 0
    """Times that a sample was left out."""
    bad: Mapping[str, int | None] = field(default_factory=dict)
    """Reason -> index of each bad sample that was not counted before."""


class LeftOutLog:
    """Names each sample once, whatever the number of epochs or evaluations; after `NAMED` of them it only counts."""

    def __init__(self, words: str, counted: str) -> None:
        """
        Args:
            words: in front of each reason.
            counted: name of the log's value that counts all of them.
        """
        self.words, self.counted = words, counted
        self.named: set[str] = set()

    def add(self, reason: str) -> None:
        """Logs a sample by its `reason`, which names it."""
        if reason in self.named or len(self.named) > NAMED:
            return
        self.named.add(reason)
        if len(self.named) > NAMED:
            logger.warning("more samples are %s; %s counts them", self.words, self.counted)
        else:
            logger.warning("%s: %s", self.words, reason)

    def skip(self, reasons: Iterable[str]) -> None:
        """Notes samples that were named before, as by the run that is continued."""
        self.named.update(reasons)


class LeftOutSamples:
    """Counts the samples that all processes leave out, and knows how many bad ones are too many.

    `add` counts in this process; what `take` gives is counted for all of them by `merge`.
    """

    def __init__(self, max_bad_samples: int, malformed: Sequence[str] = (), unused: int = 0) -> None:
        """
        Args:
            max_bad_samples: most malformed or unreadable samples that a run leaves out.
            malformed: what is wrong with samples that the data set left out when it was opened.
            unused: samples that are dropped before training: these, and those that batches by tokens leave out.
        """
        self.max_bad_samples = max_bad_samples
        self.dropped = unused
        """Times that a sample was left out, in all processes."""
        self._unused = unused
        self._bad: dict[str, int | None] = dict.fromkeys(malformed)  # of all processes
        self._log = LeftOutLog("left out", "dropped_samples")
        self._waiting_dropped = 0  # of this process, not merged yet
        self._waiting_bad: dict[str, int | None] = {}

    def add(self, skipped: Skipped) -> None:
        """Counts a sample of this process, and warns of it if it is left out for the first time."""
        self._waiting_dropped += 1
        if skipped.is_bad and skipped.reason not in self._bad:
            self._waiting_bad[skipped.reason] = skipped.index
        self._log.add(skipped.reason)

    def take(self) -> LeftOutCounts:
        """Gives this process's counts away, to be merged in all processes."""
        counts = LeftOutCounts(self._waiting_dropped, self._waiting_bad)
        self._waiting_dropped, self._waiting_bad = 0, {}
        return counts

    def merge(self, counts: LeftOutCounts) -> None:
        """Counts what a process has left out."""
        self.dropped += counts.dropped
        self._bad |= counts.bad

    @property
    def waiting_bad(self) -> int:
        """Bad samples of this process that `merge` has not counted."""
        return len(self._waiting_bad)

    def exceeds(self, more: int = 0) -> bool:
        """Whether the bad samples of all processes, and some more, are too many."""
        return len(self._bad) + more > self.max_bad_samples

    def check_bad(self, saved: Path | None = None) -> None:
        """Checks that bad samples are not too many.

        Args:
            saved: the checkpoint that the run leaves, for the error.

        Raises:
            ValueError: they are.
        """
        bad = [*self._bad, *self._waiting_bad]
        if len(bad) <= self.max_bad_samples:
            return
        more = "; ..." if len(bad) > SHOWN_REASONS else ""
        # A checkpoint continues with the same data alone, so its samples may be corrected, not removed.
        way_out = "Correct or remove them, or raise --max_bad_samples" if saved is None else (
            f"Correct them, or raise --max_bad_samples; the same command then continues from {saved}"
        )  # fmt: skip
        raise ValueError(
            f"{len(bad)} samples cannot be used, and --max_bad_samples allows {self.max_bad_samples}:"
            f" {'; '.join(bad[:SHOWN_REASONS])}{more}. {way_out}"
        )

    def check_used(self, target_tokens: int, is_end: bool) -> None:
        """Checks that something was trained on, after many samples or at the end.

        Raises:
            ValueError: all samples were left out.
        """
        is_late = is_end or self.dropped - self._unused >= UNUSED_AT_FIRST
        if is_late and self.dropped and not target_tokens:
            example = f", for example {min(self._log.named)}" if self._log.named else ""
            raise ValueError(
                f"{self.describe_none_used()}{example}. {self.count_kinds()}. Check --image_folder and"
                " --model_max_length"
            )

    def describe_none_used(self) -> str:
        """Describes a run that has left out all samples."""
        return f"no sample could be trained on; samples were left out {self.dropped} times over all epochs"

    def count_kinds(self) -> str:
        """Describes how many samples are bad."""
        return f"{len(self._bad)} of them are malformed or unreadable, any others too long, or left out as measured"

    def state(self) -> dict[str, Any]:
        """Counts of all processes, to be saved with a checkpoint as JSON."""
        return {
            "dropped_samples": self.dropped,
            "bad_samples": list(self._bad),
            "bad_indices": list(self._bad.values()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues with the counts of a checkpoint."""
        self.dropped = int(state["dropped_samples"])
        bad = list(state["bad_samples"])
        indices = state.get("bad_indices", [None] * len(bad))  # checkpoints of earlier versions lack them
        self._bad = dict(zip(bad, indices, strict=True))
        self._log.skip(self._bad)

    def look_again(self, dataset: Any) -> None:
        """Forgets bad samples that can be used by now; every process must find the same."""
        for reason, index in list(self._bad.items()):
            if index is not None and index < len(dataset):
                skipped = dataset[index].get("skipped")
                if skipped is None or not skipped.is_bad:
                    del self._bad[reason]
