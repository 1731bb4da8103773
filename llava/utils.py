"""Small services shared by LLaVA's front ends: the embedded demo, the device, logging, what a page says of failures.

It finds the demo's files but never imports the package that holds them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from llava.constants import LOGDIR

server_error_msg = "**The model gave no answer. Try again, or reload this page.**"
moderation_msg = "This question does not pass moderation. Please ask another one."


def _playground() -> Path:
    spec = find_spec("playground")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the embedded demo is missing: no package named 'playground' is installed")
    return Path(next(iter(spec.submodule_search_locations)))


def demo_model_path() -> Path:
    """Returns the folder of the embedded demo model.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    folder = _playground() / "llava-demo"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the embedded demo model is missing: no config.json in {folder}")
    return folder


def demo_picture_path() -> Path:
    """Returns the first of the demo's pictures, by name.

    Raises:
        FileNotFoundError: if there is none.
    """
    folder = _playground() / "pictures"
    picture = min(folder.glob("*.png"), default=None)
    if picture is None:
        raise FileNotFoundError(f"the demo picture is missing: no *.png in {folder}")
    return picture


def default_device() -> str:
    """Returns the best device of this machine: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices() -> list[str]:
    """Returns the names of this machine's devices: "cpu", then "cuda:0", "cuda:1", ... or "mps"."""
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
        name: what the caller calls it.

    Raises:
        ValueError: if there is no such device.
    """
    here = devices()
    if device not in here and f"{device}:0" not in here:
        raise ValueError(f"{name} is {device!r}, but this machine has {', '.join(here)} only")


def device_flag(text: str) -> str:
    """Returns the value of a `--device` flag, for argparse's `type`; one that this machine lacks is a wrong flag."""
    try:
        check_device(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def disable_torch_init() -> None:
    """Does nothing: transformers creates layers without initialising them. Kept because LLaVA's clients call it."""


def build_logger(logger_name: str, logger_filename: str | None = None) -> logging.Logger:
    """Returns a logger that writes to the console and, given a name, to that file in `LOGDIR`.

    LLaVA's also sends `sys.stdout` and `sys.stderr` to log files. This one leaves them as they are, since a library
    that takes them hides other people's output; `sys.stdout = StreamToLogger(logger)` does it where it is wanted.
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
    """A text file whose lines go to a logger, to be put in place of `sys.stdout` or `sys.stderr`.

    A logger that writes to the stream that this one replaces must do so through the old one (`logger.handlers`).
    """

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        """
        Args:
            logger: Where lines go.
            log_level: Of each line.
        """
        self.logger = logger
        self.log_level = log_level
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Lines are text: any character will do."""
        return "utf-8"

    def writable(self) -> bool:
        """True."""
        return True

    def isatty(self) -> bool:
        """False: nobody should draw progress bars here."""
        return False

    def write(self, text: str) -> int:
        """Logs each whole line; the rest waits for its end."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self.logger.log(self.log_level, line.rstrip())
        return len(text)

    def flush(self) -> None:
        """Logs a line that was begun."""
        begun, self._begun = self._begun.rstrip(), ""
        if begun:
            self.logger.log(self.log_level, begun)


def pretty_print_semaphore(semaphore: asyncio.Semaphore | None) -> str:
    """Returns a semaphore's free places and state as text for a log."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"


def violates_moderation(text: str) -> bool:
    """Whether OpenAI's moderation flags a text, asked with the key in `OPENAI_API_KEY`.

    LLaVA's takes a text for harmless where the service can't be asked; this one lets nothing pass unasked.

    Raises:
        ValueError: there is no key.
        ModerationFailed: the service gave no verdict.
    """
    from llava.moderation import ModerationService  # here: most programs ask nothing of it

    return ModerationService.from_environment("violates_moderation").flags(text)
