"""Addresses of workers are plain, and those of this machine are known beyond doubt."""

from __future__ import annotations

import argparse

import pytest

from llava.serve.http.addresses import host_of, is_loopback
from llava.serve.http.logs import warn_of_open_port
from llava.serve.workers.flags import add_token_flag


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_this_machine_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "localhost.example.com",
        "localhost.",
        "LOCALHOST",
        "127.0.0.1.example.com",
        "127.1",
        "0x7f.1",
        "2130706433",
    ],
)
def test_what_may_be_another_machine_is_not_this_one(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://localhost:21002", "localhost"),
        ("https://worker-1.example.com", "worker-1.example.com"),
        ("http://gpu_3:80", "gpu_3"),
        ("http://10.0.0.7:65535", "10.0.0.7"),
        ("http://[2001:db8::1]:21002", "2001:db8::1"),
    ],
)
def test_the_host_of_a_plain_address_is_found(address: str, host: str) -> None:
    assert host_of(address) == host


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:21002",
        "ftp://a:1",
        "file:///etc/passwd",
        "gopher://a:1",
        "//a:1",
        "http://",
        "http://:1",
        "http://a:0",
        "http://a:65536",
        "http://a:123456",
        "http://a:1/",
        "http://a:1/worker",
        "http://a:1?x",
        "http://a:1#x",
        "http://user@a:1",
        "http://user:password@a:1",
        "http://a:1@b:2",
        "http://a\\@b:1",
        "http://a b:1",
        "http://a:1\n",
        "http://a\r\nHost: b",
        "http://a:1\0",
        "http://-a:1",
        "http://a:\u0661",
        "http://\u2024:1",
        "http://%61:1",
        "http://[::1",
        "http://[1.2.3.4]:1",
        "http://[fe80::1%25eth0]:1",
        "http://0.0.0.0:1",
        "http://[::]:1",
        "http://224.0.0.1:1",
        "http://169.254.169.254:80",
        "http://[fe80::1]:1",
        "http://" + "a" * 300,
    ],
)
def test_an_address_with_more_than_a_host_and_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        host_of(address)


@pytest.mark.parametrize(
    ("host", "keys", "warned"), [("127.0.0.1", [], False), ("0.0.0.0", ["k"], False), ("0.0.0.0", [], True)]
)
def test_an_open_port_is_warned_of(host: str, keys: list[str], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_open_port(host, keys)
    assert ("--api-key" in caplog.text) == warned


@pytest.mark.parametrize("secret", ["two words", "schlüssel", "s3cret\n"])
def test_a_secret_that_no_header_can_carry_is_refused_and_not_repeated(
    secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_token_flag(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--worker-token", secret])
    said = capsys.readouterr().err
    assert "without blanks" in said
    assert secret.strip() not in said
