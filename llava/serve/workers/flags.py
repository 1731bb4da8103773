"""The flag of the token that a controller shares with its workers."""

from __future__ import annotations

import argparse
import os

from llava.serve.http.keys import TOKEN_RULE, is_bearer_token

WORKER_TOKEN_VARIABLE = "LLAVA_WORKER_TOKEN"


def add_token_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--worker-token`; its default is the environment variable."""
    help = f"secret shared by workers and controller; or ${WORKER_TOKEN_VARIABLE}; needed between machines"
    default = os.environ.get(WORKER_TOKEN_VARIABLE) or None
    parser.add_argument("--worker-token", metavar="SECRET", type=_token, default=default, help=help)


def _token(text: str) -> str:
    """Checks that a header can carry the token; an error does not repeat it."""
    if not is_bearer_token(text):
        raise argparse.ArgumentTypeError(f"a secret {TOKEN_RULE}; leave the flag out to do without")
    return text
