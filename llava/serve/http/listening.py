"""The address of a server, bound before a model is loaded: a wrong or busy one is reported at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from llava.command import integer

port_number = integer(0, 2**16 - 1)
"""Reads a flag that takes a port; 0 is any free one."""


@dataclass(frozen=True)
class Listener:
    """A bound address; clients cannot connect before `listen`."""

    host: str
    """The host as the user gave it."""

    port: int
    """The port that was bound, also if the user gave 0."""

    sockets: Sequence[socket.socket]
    """One for each address of the host's name."""

    def listen(self) -> None:
        """Lets clients connect.

        Raises:
            ValueError: another program has started to listen on the port.
        """
        for one in self.sockets:
            try:
                one.listen(2048)
            except OSError as error:
                raise _explained(error, self.host, self.port) from None


@contextmanager
def take_address(host: str, port: int) -> Iterator[Listener]:
    """Binds the address of `--host` and `--port`; releases it at the end.

    Raises:
        ValueError: the host is not an address of this machine, or the port is in use or not allowed for this user.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise _no_address(host) from None
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                one = stack.enter_context(socket.socket(family, kind, protocol))
            except OSError:  # for example an IPv6 address on a machine without IPv6
                continue
            try:
                _bind(one, family, (address[0], port, *address[2:]))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and len(found) > 1:
                    continue
                raise _explained(error, host, port) from None
            sockets.append(one)
            port = one.getsockname()[1]
        if not sockets:
            raise _no_address(host)
        yield Listener(host, port, sockets)


def _bind(one: socket.socket, family: int, address: Any) -> None:
    if os.name == "posix":
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended blocks the port
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a separate socket
    one.bind(address)


def _no_address(host: str) -> ValueError:
    return ValueError(
        f"--host {host} is not an address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 is all"
    )


def _explained(error: OSError, host: str, port: int) -> ValueError:
    if error.errno == errno.EADDRINUSE:
        return ValueError(f"--port {port} is in use on {host}; end the program that listens there, or name another")
    if error.errno == errno.EACCES:
        return ValueError(f"--port {port} is not for this user ({error.strerror}); name one of 1024 to 65535")
    if error.errno == errno.EADDRNOTAVAIL:
        return _no_address(host)
    return ValueError(f"--host {host} --port {port}: {error.strerror}")
