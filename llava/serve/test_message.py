"""Sends one message to a worker and prints the answer: `python -m llava.serve.test_message`.

A client of LLaVA's protocol, without a model. The controller names the worker.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.conversation import Conversation, conv_templates
from llava.serve.http.addresses import server_url
from llava.serve.http.flags import API_KEY_VARIABLE, api_keys, key_text
from llava.serve.terminal import escape_controls
from llava.text import check_question, place_images
from qlip.command import escape

CONV_MODE = "vicuna_v1"
"""LLaVA v1.5's prompt format, for models whose workers state none or one that is unknown here."""


def make_parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    parser = OneLineParser(prog="test_message", description="Send one message to a worker.")
    parser.add_argument(
        "--controller-address", type=server_url, default="http://localhost:21001", help="default: %(default)s"
    )
    parser.add_argument(
        "--worker-address", type=server_url, help="send to this worker (default: the one that the controller names)"
    )
    parser.add_argument("--model-name", help="default: the controller's first model")
    parser.add_argument("--max-new-tokens", type=integer(), default=32, help="default: %(default)s")
    parser.add_argument("--temperature", type=real(), default=0.7, help="default: %(default)s")
    parser.add_argument("--message", default="Tell me a story with more than 1000 words.", help="what to say")
    parser.add_argument("--image-file", action="append", default=[], type=Path, help="send an image; repeatable")
    parser.add_argument(
        "--conv-mode",
        choices=conv_templates,
        metavar="NAME",
        help=f"prompt format (default: the one that the worker states, or {CONV_MODE})",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        type=key_text,
        metavar="KEY",
        help=f"sent with each request (default: ${API_KEY_VARIABLE})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Sends the message; returns the exit code."""
    return parse_and_run(make_parser(), send, argv)


def send(args: argparse.Namespace) -> None:
    """Checks the flags, sends the message and prints the answer as it comes."""
    from llava.images import load_images
    from llava.serve.workers import calls

    check_question(args.message, "--message")
    load_images(args.image_file)  # a worker's error could not name the file
    images = [base64.b64encode(path.read_bytes()).decode() for path in args.image_file]
    with calls.open_client(next(iter(api_keys(args)), None)) as client:
        worker, model = args.worker_address, args.model_name or ""
        if not worker:
            models = calls.list_models(client, args.controller_address)
            print(f"models: {escape(', '.join(models)) or 'none'}", file=sys.stderr)
            model = model or (models[0] if models else "")
            worker = calls.find_worker(client, args.controller_address, model)
        name = args.conv_mode or calls.find_conv_mode(client, worker, model)
        conversation = conv_templates.get(name or CONV_MODE, conv_templates[CONV_MODE]).copy()
        request = build_request(args, model, conversation, images)
        answer = calls.stream_answer(client, worker, request)
        print(escape_controls(next(answer, "")), end="", flush=True)
        try:
            for piece in answer:
                print(escape_controls(piece), end="", flush=True)
        finally:
            print()  # ends the line, also before an error


def build_request(
    args: argparse.Namespace, model: str, conversation: Conversation, images: Sequence[str]
) -> dict[str, Any]:
    """Builds the request for a worker from the flags and the images in base64."""
    user, assistant = conversation.roles
    conversation.append_message(user, place_images(args.message, len(args.image_file)))
    conversation.append_message(assistant, None)
    return {
        "model": model,
        "prompt": conversation.get_prompt(),
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "stop": conversation.sep2 or conversation.sep or None,
        "images": images,
    }


if __name__ == "__main__":
    sys.exit(main())
