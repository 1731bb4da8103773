"""Reads typed lines and prints the labels of the terminal chat."""

from __future__ import annotations

import sys


def read_line(prompt: str) -> str:
    """Reads a line, stripped; the end of input reads as an empty one.

    Only a terminal may give an empty line; from a file or a pipe it is skipped, since questions may follow.

    In a terminal a first Ctrl-C says how to end the chat, and a second one raises KeyboardInterrupt; elsewhere the
    first one does.
    """
    interrupted = not is_terminal()
    while True:
        try:
            if is_terminal():
                return input(prompt).strip()
            print_label(prompt)
            while not (line := input("").strip()):
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


def is_terminal() -> bool:
    """Whether questions are typed."""
    return sys.stdin.isatty()


def print_label(text: str) -> None:
    """Prints a label such as "USER: ": to stdout in a terminal, else to stderr."""
    print(text, end="", file=sys.stdout if is_terminal() else sys.stderr, flush=True)
