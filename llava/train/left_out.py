"""Names samples that training or its evaluation leaves out, in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

NAMED = 100
"""Samples that a process names."""


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
