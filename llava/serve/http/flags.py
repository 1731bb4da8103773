"""Flags of servers: the address to listen on, the keys of clients, the limits of a request."""

from __future__ import annotations

import argparse
import os

from llava.command import integer
from llava.serve.engine.params import EngineLimits
from llava.serve.http.addresses import media_host
from llava.serve.http.failures import shorten_value
from llava.serve.http.keys import TOKEN_RULE, is_bearer_token
from llava.serve.http.limits import MAX_NAME, ConnectionLimits, RequestLimits
from llava.serve.http.listening import port_number
from qlip.images.limits import ImageLimits

API_KEY_VARIABLE = "LLAVA_API_KEY"


def add_server_flags(parser: argparse.ArgumentParser, port: int, reads: bool = True) -> None:
    """Adds the flags of a server: its address, its clients' keys, the limits of a request.

    Args:
        parser: Gets the flags.
        port: The default.
        reads: Whether the server reads what a request holds; one that only forwards it limits its size alone.
    """
    defaults = RequestLimits()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=port, help=f"port; 0 is any free one (default: {port})")
    parser.add_argument(
        "--api-key",
        action="extend",
        nargs="+",
        type=key_text,
        metavar="KEY",
        help=f"accept only requests with one of these keys; repeatable; or ${API_KEY_VARIABLE}, separated by blanks",
    )
    parser.add_argument("--max-body-bytes", type=integer(), default=defaults.max_body, help="largest request")
    parser.add_argument(
        "--max-connections",
        type=integer(),
        default=ConnectionLimits().most,
        help="most connections; of one client address that is not loopback, a quarter (default: %(default)s)",
    )
    if not reads:
        return
    parser.add_argument(
        "--allowed-media-domains",
        nargs="+",
        default=[],
        metavar="HOST",
        type=media_host,
        help="hosts that image URLs may name (default: none, images come inside the request)",
    )
    parser.add_argument("--max-images", type=integer(), default=defaults.max_images, help="most images in a request")
    parser.add_argument(
        "--max-image-bytes", type=integer(), default=defaults.image.max_bytes, help="largest image file"
    )
    parser.add_argument("--max-image-pixels", type=integer(), default=defaults.image.max_pixels, help="largest image")
    parser.add_argument("--max-prompt-chars", type=integer(), default=defaults.max_prompt, help="longest text")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the engine's limits that all servers share; see `engine_limits`."""
    limits = EngineLimits()
    parser.add_argument(
        "--max-waiting", type=integer(), default=limits.max_waiting, help="most requests that wait (%(default)s)"
    )
    parser.add_argument(
        "--max-batch-tokens",
        type=integer(),
        default=limits.max_batch_tokens,
        metavar="N",
        help="most answers generated together times the tokens of the longest, prompt included (%(default)s)",
    )
    parser.add_argument(
        "--max-join-tokens",
        type=integer(),
        default=limits.max_join_tokens,
        metavar="N",
        help="most tokens of new requests that are run between two tokens of running answers (%(default)s)",
    )
    parser.add_argument(
        "--prefix-cache-mib",
        type=integer(0),
        default=limits.max_prefix_mib,
        metavar="MIB",
        help="memory for keys and values of earlier prompts, reused by those that begin alike; 0 for none (default: for"
        " four full contexts, 1024 for a smaller model, but at most a quarter of the free memory)",
    )


def engine_limits(args: argparse.Namespace, max_batch: int) -> EngineLimits:
    """Builds the limits given by the flags of `add_engine_flags`.

    Args:
        args: the parsed flags.
        max_batch: most answers generated together.
    """
    return EngineLimits(
        max_batch,
        max_batch_tokens=args.max_batch_tokens,
        max_join_tokens=args.max_join_tokens,
        max_prefix_mib=args.prefix_cache_mib,
        max_waiting=args.max_waiting,
    )


def key_text(text: str) -> str:
    """Reads a flag that takes an API key; an error does not repeat it."""
    if not is_bearer_token(text):
        raise argparse.ArgumentTypeError(f"a key {TOKEN_RULE}; leave the flag out to do without")
    return text


def name_text(text: str) -> str:
    """Reads a flag that takes a model's name for clients, as a controller takes it."""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{shorten_value(text)} is not a name of 1 to {MAX_NAME} printable characters")
    return text


def request_limits(args: argparse.Namespace) -> RequestLimits:
    """Builds the limits given by the flags of `add_server_flags`, for a server that reads requests."""
    return RequestLimits(
        max_body=args.max_body_bytes,
        max_images=args.max_images,
        max_prompt=args.max_prompt_chars,
        image=ImageLimits(max_bytes=args.max_image_bytes, max_pixels=args.max_image_pixels),
        media_hosts=frozenset(args.allowed_media_domains),
    )


def api_keys(args: argparse.Namespace) -> list[str]:
    """Reads the keys of `--api-key`, or else of the environment.

    Raises:
        ValueError: a key of the environment cannot be sent; the error does not repeat it.
    """
    keys = args.api_key or os.environ.get(API_KEY_VARIABLE, "").split()
    if not all(map(is_bearer_token, keys)):
        raise ValueError(f"${API_KEY_VARIABLE}: a key {TOKEN_RULE}")
    return keys
