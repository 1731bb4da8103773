"""Downloads connect to what IANA's registries call globally reachable, whatever Python's own tables say."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.addresses import is_global_unicast, is_host_name, is_loopback_ip

# https://www.iana.org/assignments/iana-ipv4-special-registry: each block, and whether it is globally reachable.
IPV4_REGISTRY = [
    ("0.0.0.0/8", False),
    ("0.0.0.0/32", False),
    ("10.0.0.0/8", False),
    ("100.64.0.0/10", False),
    ("127.0.0.0/8", False),
    ("169.254.0.0/16", False),
    ("172.16.0.0/12", False),
    ("192.0.0.0/29", False),
    ("192.0.0.8/32", False),
    ("192.0.0.9/32", True),
    ("192.0.0.10/32", True),
    ("192.0.0.170/32", False),
    ("192.0.0.171/32", False),
    ("192.0.2.0/24", False),
    ("192.31.196.0/24", True),
    ("192.52.193.0/24", True),
    ("192.88.99.0/24", False),
    ("192.88.99.2/32", False),
    ("192.168.0.0/16", False),
    ("192.175.48.0/24", True),
    ("198.18.0.0/15", False),
    ("198.51.100.0/24", False),
    ("203.0.113.0/24", False),
    ("240.0.0.0/4", False),
    ("255.255.255.255/32", False),
]
# https://www.iana.org/assignments/iana-ipv6-special-registry; "N/A" is written as False.
IPV6_REGISTRY = [
    ("::1/128", False),
    ("::/128", False),
    ("64:ff9b:1::/48", False),
    ("100::/64", False),
    ("100:0:0:1::/64", False),
    ("2001::/32", False),
    ("2001:1::1/128", True),
    ("2001:1::2/128", True),
    ("2001:1::3/128", True),
    ("2001:2::/48", False),
    ("2001:3::/32", True),
    ("2001:4:112::/48", True),
    ("2001:10::/28", False),
    ("2001:20::/28", True),
    ("2001:30::/28", True),
    ("2001:db8::/32", False),
    ("2002::/16", False),
    ("2620:4f:8000::/48", True),
    ("3fff::/20", False),
    ("5f00::/16", False),
    ("fc00::/7", False),
    ("fe80::/10", False),
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "223.255.255.255", "2606:4700:4700::1111", "2001:4860:4860::8888"]
# Multicast has registries of its own, and the forms below carry an IPv4 address that a translator may take out.
FURTHER = [
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "ff0e::1",
    "192.0.0.11",
    "2001:1::4",
    "2001:1ff::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "fec0::1",
    "4000::1",
    "1fff::1",
]


@pytest.mark.parametrize(("block", "reachable"), IPV4_REGISTRY + IPV6_REGISTRY)
def test_a_block_of_the_registries_is_judged_by_its_reachability_from_end_to_end(block: str, reachable: bool) -> None:
    network = ipaddress.ip_network(block)
    assert is_global_unicast(str(network[0])) == is_global_unicast(str(network[-1])) == reachable


@pytest.mark.parametrize("block", [block for block, reachable in IPV4_REGISTRY + IPV6_REGISTRY if not reachable])
def test_what_borders_on_a_block_is_not_swallowed(block: str) -> None:
    """The neighbours are judged by the registry's most specific entry, or else by their kind."""
    network = ipaddress.ip_network(block)
    for number in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= number < 2**network.max_prefixlen:
            neighbour = type(network[0])(number)
            assert is_global_unicast(str(neighbour)) == expected(neighbour), neighbour


def expected(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    registry = IPV4_REGISTRY if ip.version == 4 else IPV6_REGISTRY
    # The registries' entries that hold others: the rest of "protocol assignments".
    wide = [("192.0.0.0/24", False), ("224.0.0.0/4", False), ("2001::/23", False)]
    blocks = [(ipaddress.ip_network(block), reachable) for block, reachable in registry + wide]
    holding = [(network.prefixlen, reachable) for network, reachable in blocks if ip in network]
    return max(holding)[1] if holding else ip.version == 4 or 0x2000 <= int(ip) >> 112 <= 0x3FFF


@settings(max_examples=200)
@given(st.one_of(st.ip_addresses(), st.ip_addresses(network="2001::/22"), st.ip_addresses(network="192.0.0.0/16")))
def test_any_address_is_judged_by_the_most_specific_entry(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if ip.version == 6 and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    assert is_global_unicast(str(ip)) == expected(ip)


@pytest.mark.parametrize("address", PUBLIC)
def test_machines_of_the_public_internet_are_allowed(address: str) -> None:
    assert is_global_unicast(address)


@pytest.mark.parametrize("address", FURTHER)
def test_groups_translations_and_ranges_of_no_use_are_refused(address: str) -> None:
    assert not is_global_unicast(address)


@pytest.mark.parametrize(("address", "reachable"), [("8.8.8.8", True), ("10.0.0.1", False), ("169.254.169.254", False)])
def test_an_ipv4_address_that_is_mapped_into_ipv6_is_judged_as_what_it_is(address: str, reachable: bool) -> None:
    assert is_global_unicast(f"::ffff:{address}") == reachable


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%1"])
def test_a_zone_changes_nothing(address: str) -> None:
    assert not is_global_unicast(address)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("::1", True),
        ("::1%lo", True),
        ("::ffff:127.0.0.1", True),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("::2", False),
        ("126.255.255.255", False),
        ("128.0.0.0", False),
    ],
)
def test_this_machine_is_known(address: str, loopback: bool) -> None:
    assert is_loopback_ip(address) == loopback
    assert not (loopback and is_global_unicast(address))


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("example.org", True),
        ("example.org.", True),
        ("EXAMPLE.org", True),
        ("gpu_3", True),
        ("_dmarc.example.org", True),
        ("xn--bcher-kva.example", True),
        ("0x7f.1", True),
        ("a" * 63 + ".org", True),
        ("a" * 64 + ".org", False),
        ("a." * 126 + "a", True),
        ("a." * 127 + "a", False),
        ("", False),
        (".", False),
        (".a", False),
        ("a..b", False),
        ("-a", False),
        ("a-", False),
        ("*", False),
        ("*.example.org", False),
        ("a%20b", False),
        ("a\\b", False),
        ("b\u00fccher.example", False),
        ("a\n", False),
        ("a\0", False),
    ],
)
def test_a_name_that_can_be_looked_up_is_known(name: str, valid: bool) -> None:
    assert is_host_name(name) == valid
