"""Where a server listens: its address is taken before a model is loaded, so that a wrong or busy one shows at once.

Knows no protocol, no model.
"""

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
"""Type of a flag that takes a port; 0 is any free one."""


@dataclass(frozen=True)
class Listener:
    """An address that is taken; nobody can connect before `listen`."""

    host: str
    """As the user named it."""

    port: int
    """Where the user named 0, the one that was found."""

    sockets: Sequence[socket.socket]
    """One for each address that the host's name has."""

    def listen(self) -> None:
        """Lets clients connect.

        Raises:
            ValueError: another program has begun to listen at the port meanwhile.
        """
        for one in self.sockets:
            try:
                one.listen(2048)
            except OSError as error:
                raise _explained(error, self.host, self.port) from None


@contextmanager
def take_address(host: str, port: int) -> Iterator[Listener]:
    """Takes the address of `--host` and `--port`, and gives it back at the end.

    Raises:
        ValueError: the host is none of this machine, or the port is busy or not for this user.
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
            except OSError:  # the name has an address of IPv6, say, and the machine does without
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
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a server that just ended blocks the port
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
    one.bind(address)


def _no_address(host: str) -> ValueError:
    return ValueError(f"--host {host} is no address of this machine; 127.0.0.1 is this machine only, 0.0.0.0 is all")


def _explained(error: OSError, host: str, port: int) -> ValueError:
    if error.errno == errno.EADDRINUSE:
        return ValueError(f"--port {port} is in use on {host}; end the program that listens there, or name another")
    if error.errno == errno.EACCES:
        return ValueError(f"--port {port} is not for this user ({error.strerror}); name one of 1024 to 65535")
    if error.errno == errno.EADDRNOTAVAIL:
        return _no_address(host)
    return ValueError(f"--host {host} --port {port}: {error.strerror}")
