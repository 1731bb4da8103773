"""Reads typed lines and prints the labels of the terminal chat."""

from __future__ import annotations

import codecs
import sys
import unicodedata
from typing import TextIO

from qlip.command import escape


def read_line(prompt: str) -> str:
    """Reads a line, stripped; the end of input reads as an empty one.

    Only a terminal may give an empty line; from a file or a pipe it is skipped, since questions may follow.

    In a terminal a first Ctrl-C says how to end the chat, and a second one raises KeyboardInterrupt; elsewhere the
    first one does.
    """
    interrupted = not is_terminal()
    while sys.stdin is not None:
        try:
            if is_terminal():
                return input(prompt).strip()
            print_label(prompt)
            while not (line := input("").removeprefix("\ufeff").strip()):  # a file of Windows may begin with it
                pass
            return line
        except EOFError:
            print_label("\n")
            return ""
        except KeyboardInterrupt:
            print_label("\n")
            if interrupted:
                raise
            interrupted = True
            print("llava: press Ctrl-C again, or Ctrl-D, to end the chat", file=sys.stderr)
    return ""


def is_terminal() -> bool:
    """Whether questions are typed. A service may have no stdin at all."""
    return sys.stdin is not None and sys.stdin.isatty()


def is_utf8(output: TextIO | None) -> bool:
    """Whether an output is written in UTF-8, which holds every sign."""
    encoding = getattr(output, "encoding", None)
    return encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def escape_controls(text: str) -> str:
    """Escapes control characters but line feeds and tabs where stdout is a terminal, which an answer could command."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    return "".join(escape(sign) if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign for sign in text)


def print_label(text: str) -> None:
    """Prints a label such as "USER: ": to stdout in a terminal, else to stderr."""
    print(text, end="", file=sys.stdout if is_terminal() else sys.stderr, flush=True)
