"""The report of a soak run: what was promised, and what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.percentiles import percentile


@dataclass
class Report:
    """Checks promises and remembers those that were broken."""

    measured: bool = True
    """Whether figures that depend on the machine are promises."""
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, promise: str, seen: object = "") -> None:
        """Prints one line and remembers a broken promise."""
        print(f"{'ok  ' if holds else 'FAIL'}  {promise}{f' ({seen})' if seen != '' else ''}", flush=True)
        if not holds:
            self.failures.append(promise)

    def measure(self, holds: bool, promise: str, seen: object = "") -> None:
        """Checks a figure, or only prints it where figures are not promises."""
        if self.measured:
            self.check(holds, promise, seen)
        else:
            print(f"seen  {promise}{f' ({seen})' if seen != '' else ''}", flush=True)


def spread(times: Sequence[float]) -> str:
    """Formats the median, 95th percentile and maximum of some seconds."""
    p95 = percentile(times, 0.95)
    return f"{statistics.median(times):.2f} / {p95:.2f} / {max(times):.2f} s of {len(times)}"


def in_mib(sizes: Sequence[int]) -> str:
    """Formats each program's bytes."""
    return ", ".join(f"{size / 2**20:+.0f} MiB" for size in sizes)
