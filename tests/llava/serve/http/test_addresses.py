"""The URLs under which servers are announced: valid for every host, and where they listen."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from llava.serve.http.addresses import local_url, url_of
from llava.serve.http.listening import take_address
from tests.llava.serve.programs import has_ipv6


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "gpu1.example", "::1", "2001:db8::7"])
def test_a_url_is_read_as_the_host_and_port_that_it_was_made_of(host: str) -> None:
    parts = urlsplit(url_of(host, 8000))
    assert (parts.scheme, parts.hostname, parts.port) == ("http", host, 8000)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0", "", "::", "::1"])
def test_a_server_listens_at_its_local_url(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("no IPv6 here")
    with take_address(host, 0) as listener:
        listener.listen()
        parts = urlsplit(local_url(host, listener.port))
        assert parts.hostname is not None
        socket.create_connection((parts.hostname, parts.port or 0), timeout=60).close()


def test_the_local_url_of_another_host_names_it() -> None:
    assert local_url("10.0.0.5", 1) == "http://10.0.0.5:1"
    assert local_url("2001:db8::7", 1) == "http://[2001:db8::7]:1"
    assert local_url("gpu1", 1) == "http://gpu1:1"
