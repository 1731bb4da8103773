"""Visitors' opinions of answers, appended to a file in the format of LLaVA's web server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

LIKE, DISLIKE, REPORT = "Like", "Dislike", "Report"
"""The chatbot's buttons."""
KINDS = {True: "upvote", False: "downvote", REPORT: "flag"}
"""What the chatbot reports of a click -> the type in LLaVA's log."""
MAX_BYTES = 2**26
"""Largest size of a day's file, since any visitor can add to it."""


class FeedbackLog:
    """Appends one JSON object a line to YEAR-MONTH-DAY-conv.json of a folder."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: the folder is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--feedback-dir {folder} is a file; name a folder")
        self.folder = folder
        self._lock = threading.Lock()

    def write(self, kind: str, model: str, state: Mapping[str, Any], ip: str) -> None:
        """Appends an opinion.

        Args:
            kind: "upvote", "downvote" or "flag".
            model: Name of the model.
            state: The conversation, as `Conversation.dict` gives it.
            ip: The visitor's address.

        Raises:
            ValueError: the day's file is full.
        """
        record = {"tstamp": round(time.time(), 4), "type": kind, "model": model, "state": state, "ip": ip}
        line = json.dumps(record).encode() + b"\n"
        path = self.folder / f"{date.today().isoformat()}-conv.json"
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size + len(line) > MAX_BYTES:
                raise ValueError("today's file for feedback is full; try again tomorrow")
            with path.open("ab") as file:
                file.write(line)


def read_vote(data: Any) -> tuple[str | None, int]:
    """Reads a click on one of the chatbot's feedback buttons: the type of vote, None if it is taken back, and the
    number of the message.

    Raises:
        ValueError: a client sent something else.
    """
    index = data.get("index") if isinstance(data, Mapping) else None
    if isinstance(index, (list, tuple)):  # the chatbot's messages may be numbered by group and place
        index = index[0] if index else None
    if not isinstance(data, Mapping) or not isinstance(index, int) or isinstance(index, bool):
        raise ValueError("this is not feedback on an answer; reload the page")
    liked = data.get("liked")
    if liked is not None and liked != "" and not (isinstance(liked, (bool, str)) and liked in KINDS):
        raise ValueError("this is not a kind of feedback; reload the page")
    return (None if liked is None or liked == "" else KINDS[liked]), index
