"""Checks which addresses and names a download may connect to, by IANA's registries; standard library only.

An allow list: what no table names is refused. The tables are written out here, since those of Python's `ipaddress`
differ between its releases, and none has all blocks.
"""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_LABEL = re.compile(r"[0-9a-z_]([0-9a-z_-]{0,61}[0-9a-z_])?")

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast, which has a separate registry.
_SPECIAL_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, cloud metadata included
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 and 6a44 relays
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, limited broadcast included
    )
)
# Globally reachable blocks inside those above.
_REACHABLE_V4 = tuple(
    IPv4Network(block)
    for block in (
        "192.0.0.9/32",  # Port Control Protocol anycast
        "192.0.0.10/32",  # TURN anycast
    )
)

# All global unicast addresses that IANA has allocated.
_GLOBAL_V6 = IPv6Network("2000::/3")
# https://www.iana.org/assignments/iana-ipv6-special-registry, the part inside that block.
_SPECIAL_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo and benchmarks included
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries an IPv4 address
        "3fff::/20",  # documentation
    )
)
_REACHABLE_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001:1::1/128",  # Port Control Protocol anycast
        "2001:1::2/128",  # TURN anycast
        "2001:1::3/128",  # DNS-SD service registration anycast
        "2001:3::/32",  # automatic multicast tunnels
        "2001:4:112::/48",  # AS112
        "2001:20::/28",  # ORCHIDv2
        "2001:30::/28",  # drones' remote identification
    )
)


def parse_ip(text: str) -> IPv4Address | IPv6Address:
    """Parses an address; an IPv4 address mapped into IPv6 becomes IPv4, and a zone is dropped.

    Raises:
        ValueError: it is not an address.
    """
    ip = ipaddress.ip_address(text.partition("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip


def is_global_unicast(text: str) -> bool:
    """Checks whether an address is that of one machine on the public internet.

    Raises:
        ValueError: it is not an address.
    """
    ip = parse_ip(text)
    if isinstance(ip, IPv4Address):
        special = any(ip in block for block in _SPECIAL_V4)
        return not special or any(ip in block for block in _REACHABLE_V4)
    special = any(ip in block for block in _SPECIAL_V6)
    return ip in _GLOBAL_V6 and (not special or any(ip in block for block in _REACHABLE_V6))


def is_loopback_ip(text: str) -> bool:
    """Checks whether an address is this machine's.

    Raises:
        ValueError: it is not an address.
    """
    ip = parse_ip(text)
    return ip in IPv4Network("127.0.0.0/8") if isinstance(ip, IPv4Address) else ip == IPv6Address(1)


def is_host_name(text: str) -> bool:
    """Checks whether a text can be looked up: ASCII labels of 1 to 63 letters, digits, `-` and `_`, at most 253 in all.

    Others make some resolvers raise, and some resolve to this machine: glibc does so for `*`.
    """
    name = text.lower().removesuffix(".")
    return len(name) <= 253 and all(_LABEL.fullmatch(label) for label in name.split("."))
