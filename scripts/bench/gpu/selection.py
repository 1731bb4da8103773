"""Runs the tests of `tests/gpu` and reports how many passed, failed, and were skipped, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts.bench.gpu.parts import report_row

ROOT = Path(__file__).parents[3]


@dataclass(eq=False)  # pytest keeps plugins in sets
class Outcomes:
    """A plugin of pytest that reports the outcomes: now and then while tests run, and at the end."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Reasons by test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a test once: when it has run, or where its preparation or clean-up failed, or it was skipped."""
        name = report.nodeid.split("/")[-1]
        if report.failed and name not in self.failed:
            self.failed.append(name)
        elif report.skipped:
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[name] = reason.removeprefix("Skipped: ")
        elif report.passed and report.when == "call":
            self.passed += 1
        if report.when == "teardown" and (report.failed or (self.passed + len(self.failed)) % 10 == 0):
            self.show()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Counts a file that cannot be imported as failed."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Reports the outcomes of all tests."""
        self.show()

    def show(self) -> None:
        """Reports the outcomes so far."""
        report_row({"key": "tests", "passed": self.passed, "failed": self.failed, "skipped": self.skipped})


def run(model: str, device: str, turns: int) -> int:
    """Runs all tests of the selection on the device; returns the number that failed, at least 1 if pytest failed."""
    outcomes = Outcomes()
    flags = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "--device", device]
    code = pytest.main(
        [*flags, "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests/gpu")], [outcomes]
    )
    return len(outcomes.failed) or int(code != 0)
