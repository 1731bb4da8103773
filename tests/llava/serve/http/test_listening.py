"""A server that cannot listen where its flags say ends in one line that names them, before a model is loaded."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llava.serve import controller, gradio_web_server, model_worker, openai_api
from llava.serve.http import server
from llava.serve.http.listening import take_address
from llava.serve.web import launch
from llava.serve.workers import heartbeat, worker_app

Main = Callable[[Sequence[str]], int]

SERVERS = [
    pytest.param(controller.main, ["--worker-token=s"], id="controller"),
    pytest.param(model_worker.main, ["--no-register"], id="model_worker"),
    pytest.param(openai_api.main, [], id="openai_api"),
    pytest.param(gradio_web_server.main, [], id="gradio_web_server"),
    pytest.param(gradio_web_server.main, ["--controller-url", "http://localhost:1"], id="gradio_web_server, no model"),
]


@pytest.fixture(autouse=True)
def nothing_is_loaded_or_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the program got further than its address")

    for module in (model_worker, openai_api, launch):
        monkeypatch.setattr(module, "load_engine", never)
    for module in (server, launch):
        monkeypatch.setattr(module, "serve", never)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert "Traceback" not in error and "GRADIO" not in error
    return error.splitlines()[-1]


def exit_code(main: Main, flags: Sequence[str]) -> Any:
    try:
        return main(flags)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize(("main", "flags"), SERVERS)
@pytest.mark.parametrize("port", ["99999", "65536", "-1", "http"])
def test_a_port_out_of_range_is_refused(
    main: Main, flags: list[str], port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """99999 once was taken for 99999 - 65536."""
    assert exit_code(main, [*flags, f"--port={port}"]) == 2
    assert f"argument --port: '{port}' is not allowed; it must be an integer from 0 to 65535" in last_line(capsys)


@pytest.mark.parametrize(("main", "flags"), SERVERS)
def test_a_busy_port_is_refused(main: Main, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert exit_code(main, [*flags, "--port", str(port)]) == 2
    assert f"error: --port {port} is in use on 127.0.0.1; end the program that listens there" in last_line(capsys)


@pytest.mark.parametrize(("main", "flags"), SERVERS)
@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "127.0.0.1:8000", "http://localhost", "a" * 64])
def test_a_host_that_is_not_this_machine_is_refused(
    main: Main, flags: list[str], host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """192.0.2.1 is an address of documentation, which no machine has (RFC 5737)."""
    assert exit_code(main, [*flags, f"--host={host}"]) == 2
    assert f"error: --host {host} is not an address of this machine; 127.0.0.1 is" in last_line(capsys)


def test_a_port_that_is_not_for_this_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("llava.serve.http.listening._bind", refuse)
    with pytest.raises(ValueError, match=r"--port 80 is not for this user \(Permission denied\); name one of 1024"):
        take_address("127.0.0.1", 80).__enter__()


def test_a_taken_address_refuses_clients_until_it_listens() -> None:
    with take_address("127.0.0.1", 0) as listener:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.port))
        listener.listen()
        socket.create_connection(("127.0.0.1", listener.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port))


def test_a_port_that_another_program_took_meanwhile_is_named() -> None:
    with take_address("127.0.0.1", 0) as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", listener.port))
        other.listen()
        with pytest.raises(ValueError, match=f"--port {listener.port} is in use on 127.0.0.1"):
            listener.listen()


def test_a_name_with_several_addresses_gets_one_port_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `localhost` is 127.0.0.1 and ::1; one that the machine does not have is left out."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "127.0.0.2", "192.0.2.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    with take_address("localhost", 0) as listener:
        assert [one.getsockname() for one in listener.sockets] == [
            ("127.0.0.1", listener.port),
            ("127.0.0.2", listener.port),
        ]


def test_a_worker_at_any_free_port_registers_with_the_one_it_got(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Engine:
        def close(self) -> None:
            seen.append("closed")

    class Link:
        def __init__(self, controller: str, address: str, *more: Any) -> None:
            seen.append(address)

        start = stop = None

    monkeypatch.setattr(model_worker, "load_engine", lambda *arguments, **options: Engine())
    monkeypatch.setattr(worker_app, "create_app", lambda *arguments: None)
    monkeypatch.setattr(heartbeat, "Registration", Link)
    monkeypatch.setattr(server, "serve", lambda app, listener, *hooks: seen.append(listener.port))
    assert model_worker.main(["--port=0"]) == 0
    address, port, closed = seen
    assert address == f"http://localhost:{port}" and port > 0 and closed == "closed"
