"""The OpenAI-compatible API as a Ray Serve application: `serve run llava.serve.ray_app:app`.

Each replica is one engine with the routes, limits and errors of `python -m llava.serve.openai_api`, whose flags
are the application's arguments: `serve run llava.serve.ray_app:app model_path=FOLDER max_batch=16`. Ray Serve's config
file (scripts/ray_serve.yaml) sets the number of replicas and their machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from llava.serve.engine.errors import EngineClosed
from llava.serve.openai_api import load, parse_args


class Replica:
    """One engine with its routes."""

    def __init__(self, flags: Sequence[str]) -> None:
        """
        Args:
            flags: Flags of `python -m llava.serve.openai_api`, without --host and --port.
        """
        self.engine, self.settings = load(parse_args(flags))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Builds the application that gets Ray Serve's requests."""
        from llava.serve.openai.app import openai_app

        return openai_app(self.engine, self.settings)

    def check_health(self) -> None:
        """Fails once the engine is closed, so that Ray Serve replaces the replica."""
        if self.engine.closed:
            raise EngineClosed

    def __del__(self) -> None:
        """Finishes the accepted requests; Ray Serve has stopped sending new ones."""
        if hasattr(self, "engine"):
            self.engine.close()


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Converts an application's arguments to command-line flags.

    Args:
        arguments: Flag name, with or without dashes -> value: true for a flag without a value, false for its `--no-`
            form, also as the texts that `serve run` gives; a list for several values; null leaves a flag out.
    """
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.strip("-").replace("_", "-")
        value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (list, tuple)):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags.append(f"--{flag}={value}")
    return flags


def deployment(flags: Sequence[str], replica: type[Replica] = Replica) -> serve.Deployment:
    """Builds the deployment, to be bound to the flags.

    Raises:
        ValueError: a flag is wrong.
    """
    if own := [flag for flag in flags if flag.partition("=")[0] in ("--host", "--port")]:
        raise ValueError(
            f"{', '.join(own)}: the address is Ray Serve's, not the application's; give it as http_options in the"
            " config file, or to serve.start"
        )
    try:
        args = parse_args(flags)
    except SystemExit:
        names = ", ".join(flag.partition("=")[0] for flag in flags if flag.startswith("--"))  # values may be keys
        raise ValueError(f"wrong arguments among {names}; see python -m llava.serve.openai_api --help") from None
    # The engine limits its queue itself and refuses more with 429; Ray Serve's own limit would let requests wait.
    accepted = args.max_batch + args.max_waiting
    return serve.deployment(serve.ingress()(replica), name="llava", max_ongoing_requests=accepted + 8)


def app(arguments: dict[str, Any]) -> Application:
    """Builds the application for `serve run` and `serve deploy`; every replica loads the model."""
    flags = flags_of(arguments)
    return deployment(flags).bind(flags)
