"""The OpenAI-compatible API as a Ray Serve application: `serve run llava.serve.ray_app:app`.

Each replica is one engine behind the same routes, limits and errors as `python -m llava.serve.openai_api`, whose flags
are the application's arguments: `serve run llava.serve.ray_app:app model_path=FOLDER max_batch=16`. How many replicas
there are, and on what machines, is for Ray Serve's own config file to say (scripts/ray_serve.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from llava.serve.engine.errors import EngineClosed
from llava.serve.openai.app import openai_app
from llava.serve.openai_api import load, parse_args


class Replica:
    """One engine and its routes."""

    def __init__(self, flags: Sequence[str]) -> None:
        """
        Args:
            flags: Of `python -m llava.serve.openai_api`, but for --host and --port.
        """
        self.engine, self.settings = load(parse_args(flags))

    def __serve_build_asgi_app__(self) -> Any:
        """Returns what Ray Serve passes requests to."""
        return openai_app(self.engine, self.settings)

    def check_health(self) -> None:
        """Lets Ray Serve replace a replica that answers no more."""
        if self.engine.closed:
            raise EngineClosed

    def __del__(self) -> None:
        """Answers what was taken on; called when Ray Serve has stopped sending requests."""
        if hasattr(self, "engine"):
            self.engine.close()


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Turns an application's arguments into command-line flags.

    Args:
        arguments: Names of flags, with or without dashes, and their values: true for a flag without a value, false for
            its `--no-` form, a list for several values.
    """
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.strip("-").replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (list, tuple)):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags.append(f"--{flag}={value}")
    return flags


def deployment(flags: Sequence[str], replica: type[Replica] = Replica) -> serve.Deployment:
    """Returns the deployment, to be bound to the flags.

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
    # The engine itself bounds what waits, and refuses more with 429; Ray Serve's own bound would leave it waiting.
    taken = args.max_batch + args.max_waiting
    return serve.deployment(serve.ingress()(replica), name="llava", max_ongoing_requests=taken + 8)


def app(arguments: dict[str, Any]) -> Application:
    """Builds the application for `serve run` and `serve deploy`; every replica loads the model."""
    flags = flags_of(arguments)
    return deployment(flags).bind(flags)
