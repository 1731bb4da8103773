"""Helpers shared by LLaVA's commands: the embedded demo's paths, devices, logging, moderation.

Finds the demo's files without importing the package that holds them; imports torch only to look for devices.
"""

from __future__ import annotations

import argparse
import io
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.constants import LOGDIR

if TYPE_CHECKING:
    import asyncio

PROJECT = "llava-qlip"
"""The name of this project's package."""

server_error_msg = "**The model gave no answer. Try again, or reload this page.**"
moderation_msg = "This question does not pass moderation. Please ask another one."


def installed(package: str) -> str | None:
    """Finds a package's version without importing it; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # here, since few commands need it

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _playground() -> Path:
    spec = find_spec("playground")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the embedded demo is missing: no package named 'playground' is installed")
    return Path(next(iter(spec.submodule_search_locations)))


def demo_model_path() -> Path:
    """Finds the folder of the embedded demo model.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    folder = _playground() / "llava-demo"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the embedded demo model is missing: no config.json in {folder}")
    return folder


def demo_picture_paths() -> list[Path]:
    """Lists the demo's pictures by name, without drawings that `qlip show` has written beside them.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = _playground() / "pictures"
    pictures = sorted(file for file in folder.glob("*.png") if not file.name.endswith(".leaves.png"))
    if not pictures:
        raise FileNotFoundError(f"the demo picture is missing: no *.png in {folder}")
    return pictures


def demo_picture_path() -> Path:
    """Finds the first of the demo's pictures.

    Raises:
        FileNotFoundError: if there is none.
    """
    return demo_picture_paths()[0]


def default_device() -> str:
    """Finds the best device of this machine: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices() -> list[str]:
    """Lists this machine's devices: "cpu", then "cuda:0", "cuda:1", ... or "mps"."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    if accelerator.type == "mps":
        return ["cpu", "mps"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]


def check_device(device: str, name: str = "--device") -> None:
    """Checks that this machine has a device.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps".
        name: of the caller's argument, for the error.

    Raises:
        ValueError: if there is no such device.
    """
    if device == "cpu":  # every machine's, and many flags' default: known without torch
        return
    here = devices()
    if device not in here and f"{device}:0" not in here:
        raise ValueError(f"{name} is {device!r}, but this machine has {', '.join(here)} only")


def device_flag(text: str) -> str:
    """Checks the value of a `--device` flag, for argparse's `type`; a device that this machine lacks is refused."""
    try:
        check_device(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def disable_torch_init() -> None:
    """Does nothing: transformers creates layers without initialising them. Kept because LLaVA's clients call it."""


def build_logger(logger_name: str, logger_filename: str | None = None) -> logging.Logger:
    """Builds a logger that writes to the console and, given a name, to that file in `LOGDIR`.

    LLaVA's also redirects `sys.stdout` and `sys.stderr` to log files. This one does not, since a library that
    redirects them hides other output; `sys.stdout = StreamToLogger(logger)` does it where it is wanted.
    """
    logger = logging.getLogger(logger_name)
    if logger.handlers:
        return logger
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if logger_filename is not None:
        Path(LOGDIR).mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(Path(LOGDIR) / logger_filename, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger


class StreamToLogger(io.TextIOBase):
    """A text file whose lines go to a logger, as a replacement for `sys.stdout` or `sys.stderr`.

    A logger that writes to the stream that this one replaces must do so through the old one (`logger.handlers`).
    """

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        """
        Args:
            logger: Where lines go.
            log_level: Level of each line.
        """
        self.logger = logger
        self.log_level = log_level
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8: lines may hold any character."""
        return "utf-8"

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """False: progress bars should not be drawn here."""
        return False

    def write(self, text: str) -> int:
        """Logs each whole line; the rest is kept until its line ends."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self.logger.log(self.log_level, line.rstrip())
        return len(text)

    def flush(self) -> None:
        """Logs the line that has no end yet."""
        begun, self._begun = self._begun.rstrip(), ""
        if begun:
            self.logger.log(self.log_level, begun)


def pretty_print_semaphore(semaphore: asyncio.Semaphore | None) -> str:
    """Formats a semaphore's value and state for a log."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"


def violates_moderation(text: str) -> bool:
    """Asks OpenAI's moderation whether it flags a text, with the key in `OPENAI_API_KEY`.

    LLaVA's version lets a text pass if the service cannot be reached; this one raises.

    Raises:
        ValueError: there is no key.
        ModerationError: the service gave no verdict.
    """
    from llava.moderation import ModerationService  # here, since it imports httpx

    return ModerationService.from_environment("violates_moderation").flags(text)
