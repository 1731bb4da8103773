"""Addresses of servers, as command-line flags and other machines give them."""

from __future__ import annotations

import argparse
import ipaddress
import re
from urllib.parse import urlsplit

from llava.addresses import is_host_name

MAX_ADDRESS = 300  # characters

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z]([0-9A-Za-z._-]*[0-9A-Za-z])?)(:([0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """Whether a host is certainly this machine: "localhost" or a loopback address, in its usual notation."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int) -> str:
    """Formats a host and a port as the URL of a server; an IPv6 address gets its brackets."""
    return f"http://{format_host(host)}:{port}"


def format_host(host: str) -> str:
    """Formats a host as URLs have it: an IPv6 address in brackets, anything else as it is."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def local_url(host: str, port: int) -> str:
    """Formats the URL at which programs of this machine reach a server that listens on a host.

    A wildcard listens on loopback too, `::` on that of IPv6 alone. No other host than 127.0.0.1 is written as
    localhost: a server on a second loopback address does not listen there.
    """
    if not host:
        return url_of("localhost", port)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return url_of(host, port)
    if ip.is_unspecified:
        host = "localhost" if ip.version == 4 else "::1"
    return url_of("localhost" if host == "127.0.0.1" else host, port)


def host_of(address: str) -> str:
    """Reads the host of a worker's address, without brackets.

    Raises:
        ValueError: the address is not http(s)://HOST[:PORT], or the host cannot be one machine's own address.
    """
    match = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if match is None or not 0 < int(match[4] or 80) < 2**16:
        raise ValueError("an address must read http://HOST:PORT or https://HOST:PORT, without path or password")
    host, in_brackets = match[1].strip("[]"), match[1].startswith("[")
    try:
        ip = ipaddress.IPv6Address(host) if in_brackets else ipaddress.ip_address(host)
    except ValueError:
        if in_brackets:
            raise ValueError("the address in brackets is not a valid IPv6 address") from None
        if not _has_usable_host(address):
            raise ValueError("a host name has parts of 1 to 63 characters, and after xn-- a valid encoding") from None
        return host
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError("an address must be the worker's own, not a wildcard, multicast or link-local address")
    return host


def _has_usable_host(address: str) -> bool:
    """Whether httpx can connect to an address: httpx decodes some host names, and the resolver encodes them again."""
    match = _ADDRESS.fullmatch(address)
    # A plain name such as that of a flag's default needs no decoding, and so no import of httpx.
    if match and "xn--" not in match[1].lower() and re.search("[a-zA-Z]", match[1]) and ":" not in match[1]:
        return is_host_name(match[1])
    import httpx

    try:
        url = httpx.URL(address)
        host = url.raw_host.decode("ascii")
        return bool(url.host) and (is_host_name(host) or ":" in host)
    except (httpx.InvalidURL, ValueError):  # idna's errors are ValueErrors
        return False


def media_host(text: str) -> str:
    """Reads a flag that takes a host name alone, which image URLs may then name.

    Raises:
        ArgumentTypeError: the text is not a host name, or has a scheme, port or path as well.
    """
    import httpx

    try:
        host = httpx.URL(f"http://{text}").raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):  # unpaired surrogates
        host = ""
    if not is_host_name(host) or any(sign in text for sign in ":/@?# "):
        raise argparse.ArgumentTypeError(f"{text!r} is not a host name; give it without scheme, port or path")
    return host


def server_url(text: str) -> str:
    """Reads a flag that takes the address of a server to call; removes a slash at its end.

    Raises:
        ArgumentTypeError: the text is not an http(s) URL, or its port is invalid.
    """
    try:
        parts = urlsplit(text)
        wrong = parts.scheme not in ("http", "https") or parts.port == 0 or not _has_usable_host(text)
    except ValueError:  # a port that is not a number, or out of range
        wrong = True
    wrong = wrong or "?" in text or "#" in text  # routes are added at the end
    if wrong or any(sign.isspace() for sign in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a server's address; it must read http://HOST:PORT")
    return text.rstrip("/")


def machine_address(text: str) -> str:
    """Reads a flag that takes an address for a controller to use; removes a slash at its end."""
    address = text.removesuffix("/")
    try:
        host_of(address)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return address
