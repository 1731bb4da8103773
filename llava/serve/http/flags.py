"""The flags of servers: where to listen, whom to let in, what a request may cost."""

from __future__ import annotations

import argparse
import os

import httpx

from llava.addresses import is_host_name
from llava.command import integer
from llava.images import ImageLimits
from llava.serve.http.connections import ConnectionLimits
from llava.serve.http.limits import RequestLimits
from llava.serve.http.listening import port_number

API_KEY_VARIABLE = "LLAVA_API_KEY"


def add_server_flags(parser: argparse.ArgumentParser, port: int, reads: bool = True) -> None:
    """Adds the flags of where to listen, whom to let in and what a request may cost.

    Args:
        parser: Gets the flags.
        port: The default.
        reads: Whether the server looks into requests; one that only passes them on limits their size alone.
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
        help=f"let only requests with such a key in; repeatable; or ${API_KEY_VARIABLE}, where blanks separate several",
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
        type=_host,
        help="hosts that image URLs may name (default: none, pictures come inside the request)",
    )
    parser.add_argument("--max-images", type=integer(), default=defaults.max_images, help="most pictures in a request")
    parser.add_argument(
        "--max-image-bytes", type=integer(), default=defaults.image.max_bytes, help="largest image file"
    )
    parser.add_argument("--max-image-pixels", type=integer(), default=defaults.image.max_pixels, help="largest picture")
    parser.add_argument("--max-prompt-chars", type=integer(), default=defaults.max_prompt, help="longest text")


def key_text(text: str) -> str:
    """Type of a flag that takes an API key; says nothing of what it is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a key may not be empty; leave the flag out to do without")
    return text


def _host(text: str) -> str:
    try:
        host = httpx.URL(f"http://{text}").raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):  # of half characters
        host = ""
    if not is_host_name(host) or any(sign in text for sign in ":/@?# "):
        raise argparse.ArgumentTypeError(f"{text!r} is no host name; give it without scheme, port or path")
    return host


def request_limits(args: argparse.Namespace) -> RequestLimits:
    """Returns the limits that the flags of `add_server_flags` state, of a server that reads requests."""
    return RequestLimits(
        max_body=args.max_body_bytes,
        max_images=args.max_images,
        max_prompt=args.max_prompt_chars,
        image=ImageLimits(max_bytes=args.max_image_bytes, max_pixels=args.max_image_pixels),
        media_hosts=frozenset(args.allowed_media_domains),
    )


def api_keys(args: argparse.Namespace) -> list[str]:
    """Returns the keys of `--api-key` or else of the environment."""
    return args.api_key or os.environ.get(API_KEY_VARIABLE, "").split()
