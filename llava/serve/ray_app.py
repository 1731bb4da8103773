"""The OpenAI-compatible API as a Ray Serve application: `serve run llava.serve.ray_app:app`.

Each replica is one engine with the routes, limits and errors of `python -m llava.serve.openai_api`, whose flags
are the application's arguments: `serve run llava.serve.ray_app:app model_path=FOLDER max_batch=16`. Ray Serve's config
file (scripts/ray_serve.yaml) sets the number of replicas and their machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from llava.command import OneLineParser
from llava.serve.engine.errors import EngineClosedError
from llava.serve.http.flags import API_KEY_VARIABLE
from llava.serve.openai_api import load, make_parser

_ADDRESS = (
    "the address is Ray Serve's, not the application's; give it as http_options in the config file, or to serve.start"
)
NOT_HERE = {
    "host": _ADDRESS,
    "port": _ADDRESS,
    "max_connections": "connections are Ray Serve's, not the application's; limit them in front of it",
    "api_key": f"Ray writes arguments to its logs; set ${API_KEY_VARIABLE} where the nodes are started",
}
"""Flags that are no arguments -> what to do instead."""


class Replica:
    """One engine with its routes."""

    def __init__(self, flags: Sequence[str]) -> None:
        """
        Args:
            flags: Flags of `python -m llava.serve.openai_api` but those of `NOT_HERE`.
        """
        self.engine, self.settings = load(make_parser().parse_args(flags))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Builds the application that gets Ray Serve's requests."""
        from llava.serve.openai.app import openai_app

        return openai_app(self.engine, self.settings)

    def check_health(self) -> None:
        """Fails once the engine is closed, so that Ray Serve replaces the replica."""
        if self.engine.closed:
            raise EngineClosedError

    def __del__(self) -> None:
        """Finishes the accepted requests; Ray Serve has stopped sending new ones."""
        if hasattr(self, "engine"):
            self.engine.close()


class RaisingParser(OneLineParser):
    """Raises its errors: Ray shows an exception, but not what its processes print."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; arguments are flags of python -m llava.serve.openai_api, see its --help")


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Converts an application's arguments to command-line flags.

    Args:
        arguments: Flag name, with or without dashes -> value: true or false for a flag without a value, also as the
            texts that `serve run` gives; a list for several values; null leaves a flag out.

    Raises:
        ValueError: there is no such flag, or it is one of `NOT_HERE`.
    """
    actions = list_actions()
    flags: list[str] = []
    for given, value in arguments.items():
        name = argument_name(given)
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower(), value)
        if value is None:
            continue
        check_here(given)
        if name not in actions:
            close = get_close_matches(name, actions, 1)
            hint = f"; did you mean {close[0]}?" if close else "; arguments are named as its flags, see its --help"
            raise ValueError(f"python -m llava.serve.openai_api has no flag for the argument {given!r}{hint}")
        flags += _flags_of(given, actions[name], value)
    return flags


def argument_name(flag: str) -> str:
    """Converts a flag, or an argument in either spelling, to the argument's name."""
    return flag.strip("-").replace("-", "_")


def check_here(given: str) -> None:
    """Raises ValueError if a flag or an argument is one of `NOT_HERE`."""
    if (name := argument_name(given)) in NOT_HERE:
        raise ValueError(f"{given}: {NOT_HERE[name]}")


def list_actions() -> dict[str, argparse.Action]:
    """Lists what the flags do by their names with underscores; a switch's `--no-` form is one of them."""
    actions = [action for action in make_parser(RaisingParser)._actions if action.dest != "help"]
    return {argument_name(flag): action for action in actions for flag in action.option_strings}


def _flags_of(given: str, action: argparse.Action, value: Any) -> list[str]:
    """Formats the value of one flag.

    Raises:
        ValueError: it is true or false, and the flag takes another value.
    """
    flag = f"--{given.strip('-').replace('_', '-')}"
    if isinstance(value, (list, tuple)):
        return [flag, *map(str, value)]
    if not isinstance(value, bool):
        return [f"{flag}={value}"]
    if action.nargs != 0:
        raise ValueError(f"{given} is {str(value).lower()}; {flag} takes another value")
    negation = f"--no-{flag.removeprefix('--')}"
    if value:
        return [flag]
    return [negation] if negation in action.option_strings else []


def deployment(flags: Sequence[str], replica: type[Replica] = Replica) -> serve.Deployment:
    """Builds the deployment, to be bound to the flags.

    Raises:
        ValueError: a flag is wrong, or one of `NOT_HERE`.
    """
    for flag in flags:
        check_here(flag.partition("=")[0])
    args = make_parser(RaisingParser).parse_args(flags)
    # The engine limits its queue itself and refuses more with 429; Ray Serve's own limit would let requests wait.
    accepted = args.max_batch + args.max_waiting
    return serve.deployment(serve.ingress()(replica), name="llava", max_ongoing_requests=accepted + 8)


def app(arguments: dict[str, Any]) -> Application:
    """Builds the application for `serve run` and `serve deploy`; every replica loads the model."""
    flags = flags_of(arguments)
    return deployment(flags).bind(flags)
