"""Sends one message to a worker, by way of the controller, and prints the answer: `python -m llava.serve.test_message`.

A client of LLaVA's protocol that needs no model and no engine; see `wire` for what it sends.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from llava.command import OneLineParser, integer, real, run_command
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conv_templates
from llava.images import load_images
from llava.serve.http.auth import bearer_header
from llava.serve.http.flags import api_keys, key_text
from llava.serve.workers.auth import server_url
from llava.serve.workers.heartbeat import explained, not_answered
from llava.serve.workers.protocol import ErrorCode, FrameSplitter

TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # a worker repeats its last frame more often than that


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="test_message", description="Send one message to a worker.")
    parser.add_argument(
        "--controller-address", type=server_url, default="http://localhost:21001", help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-address", type=server_url, help="go to this worker (default: the one that the controller names)"
    )
    parser.add_argument("--model-name", help="default: the first that the controller knows")
    parser.add_argument("--max-new-tokens", type=integer(), default=32, help="default: %(default)s")
    parser.add_argument("--temperature", type=real(), default=0.7, help="default: %(default)s")
    parser.add_argument("--message", default="Tell me a story with more than 1000 words.", help="what to say")
    parser.add_argument("--image-file", action="append", default=[], type=Path, help="show a picture; repeatable")
    parser.add_argument(
        "--conv-mode", choices=conv_templates, default="vicuna_v1", metavar="NAME", help="prompt format"
    )
    parser.add_argument("--api-key", action="append", type=key_text, metavar="KEY", help="sent with each request")
    return parser.parse_args(argv)


def find_worker(client: httpx.Client, controller: str, model: str | None) -> tuple[str, str]:
    """Asks the controller; returns a worker's address and the model's name.

    Raises:
        ConnectionError: no controller answers there, or it refuses.
        ValueError: it knows no worker for that model.
    """

    def ask(route: str, request: dict[str, Any] | None = None) -> Any:
        try:
            return client.post(f"{controller}/{route}", json=request).raise_for_status().json()
        except httpx.HTTPError as error:
            raise not_answered(error, controller) from None

    ask("refresh_all_workers")
    models = sorted(ask("list_models")["models"])
    print(f"models: {', '.join(models) or 'none'}", file=sys.stderr)
    model = model or (models[0] if models else "")
    address = ask("get_worker_address", {"model": model})["address"]
    if not address:
        raise ValueError(
            f"the controller at {controller} knows no worker for the model {model!r}; start one by"
            " python -m llava.serve.model_worker, or name another by --model-name"
        )
    return address, model


def ask(client: httpx.Client, worker: str, request: dict[str, Any]) -> Iterator[str]:
    """Yields the pieces of the answer.

    Raises:
        ConnectionError: no worker answers there.
        RuntimeError: the worker refused or failed; holds what it said.
    """
    shown = request["prompt"]
    splitter = FrameSplitter()
    try:
        with client.stream("POST", f"{worker}/worker_generate_stream", json=request) as reply:
            for data in reply.iter_raw():
                for frame in splitter.push(data):
                    message = json.loads(frame)
                    if message["error_code"] != ErrorCode.NONE:
                        raise RuntimeError(f"{message['text']} (error code {message['error_code']})")
                    yield message["text"][len(shown) :]
                    shown = message["text"]
            rest = b"".join(splitter.finish())
    except httpx.HTTPError as error:
        raise ConnectionError(
            f"no worker answers at {worker} ({explained(error)}); start one by python -m llava.serve.model_worker, or"
            " name another by --worker-address"
        ) from None
    if rest or reply.status_code != 200:
        raise RuntimeError(f"HTTP {reply.status_code}: {rest[:500].decode(errors='replace')}")


def request_for(
    args: argparse.Namespace, model: str, conversation: Conversation, images: Sequence[str]
) -> dict[str, Any]:
    """Returns the request that the flags describe, with its pictures in base64."""
    user, assistant = conversation.roles
    tokens = f"{DEFAULT_IMAGE_TOKEN}\n" * len(args.image_file)
    conversation.append_message(user, tokens + args.message)
    conversation.append_message(assistant, None)
    return {
        "model": model,
        "prompt": conversation.get_prompt(),
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "stop": conversation.sep2 or conversation.sep,
        "images": images,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Sends the message and returns the exit code."""
    args = parse_args(argv)
    return run_command("test_message", lambda: send(args))


def send(args: argparse.Namespace) -> None:
    """Sends the message and prints the answer as it comes."""
    load_images(args.image_file)  # a worker could not say which of them is none
    images = [base64.b64encode(path.read_bytes()).decode() for path in args.image_file]
    headers = {"User-Agent": "LLaVA Client"} | bearer_header(next(iter(api_keys(args)), None))
    with httpx.Client(timeout=TIMEOUT, headers=headers, trust_env=False) as client:
        worker, model = args.worker_address, args.model_name or ""
        if not worker:
            worker, model = find_worker(client, args.controller_address, args.model_name)
        for piece in ask(client, worker, request_for(args, model, conv_templates[args.conv_mode].copy(), images)):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    sys.exit(main())
