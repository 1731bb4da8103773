"""The controller registers authenticated workers only, and answers LLaVA's calls."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from llava.serve.workers.protocol import WorkerStatus
from tests.llava.serve.workers.controllers import (
    ASKED,
    STATUS,
    A,
    B,
    Handler,
    Setup,
    bearer,
    registration,
    unreachable,
)

# Who may register


def test_workers_of_this_machine_need_no_secret() -> None:
    setup = Setup()
    assert setup.post("register_worker", registration()).json() is None
    assert setup.post("receive_heart_beat", {"worker_name": A, "queue_length": 2}).json() == {"exist": True}
    assert setup.post("list_models").json() == {"models": ["m"]}


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("the controller listens to others", {"on_loopback": False}),
        ("the worker calls from elsewhere", {"peer": ("10.0.0.9", 1)}),
        ("the worker is elsewhere", {"name": "http://10.0.0.9:21002"}),
        ("the worker's name may resolve to anywhere", {"name": "http://localhost.example.com:21002"}),
        ("a page in a browser was led here under its own name", {"host": "evil.example.com"}),
    ],
)
def test_without_a_secret_nobody_else_may_register(what: str, options: dict[str, Any]) -> None:
    setup = Setup(on_loopback=options.pop("on_loopback", True))
    reply = setup.post("register_worker", registration(options.pop("name", A)), **options)
    assert reply.status_code == 403, what
    assert "--worker-token" in reply.json()["error"]["message"]
    assert setup.registry.workers() == {}


def test_a_page_in_a_browser_cannot_register_by_a_simple_request() -> None:
    """Browsers ask before they send JSON to another site, but not before they send text."""
    setup = Setup()
    reply = setup.post(
        "register_worker", None, content=json.dumps(registration()), headers={"Content-Type": "text/plain"}
    )
    assert reply.status_code == 400
    assert setup.registry.workers() == {}


@pytest.mark.parametrize("route", ["register_worker", "receive_heart_beat", "unregister_worker"])
@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(""), bearer("s3cre"), {"Authorization": "s3cret"}])
def test_where_there_is_a_secret_workers_must_know_it(route: str, headers: dict[str, str]) -> None:
    setup = Setup(token="s3cret")
    setup.registry.register(A, WorkerStatus.model_validate(STATUS), True)
    reply = setup.post(route, {**registration(B), "queue_length": 0}, headers=headers)
    assert reply.status_code == 403
    assert "s3cret" not in reply.text
    assert list(setup.registry.workers()) == [A]


@pytest.mark.parametrize("ending", ["%0A", "%0A%0A", "%0D%0A", "/", "%00"])
@pytest.mark.parametrize("route", ["register_worker", "receive_heart_beat", "unregister_worker"])
@pytest.mark.parametrize(
    ("options", "sender"),
    [
        ({"token": "s3cret"}, {}),
        ({"token": "s3cret", "keys": ["k1"]}, {"headers": bearer("k1")}),
        ({}, {"peer": ("203.0.114.9", 1), "host": "evil.example.com"}),
    ],
    ids=["a secret", "a client's key", "no secret"],
)
def test_no_spelling_of_a_path_leads_around_the_secret(
    route: str, ending: str, options: dict[str, Any], sender: dict[str, Any]
) -> None:
    """The pattern of a route matches its path with a line feed after it as well."""
    setup = Setup(**options)
    setup.registry.register(A, WorkerStatus.model_validate(STATUS), True)
    body = {**registration(B), "queue_length": 0}
    assert setup.post(f"{route}{ending}", body, **sender).status_code in (401, 403, 404)
    body["worker_name"] = A
    assert setup.post(f"{route}{ending}", body, **sender).status_code in (401, 403, 404)
    assert list(setup.registry.workers()) == [A] and setup.recognised == []


def test_the_secret_is_sent_to_workers_only_once_they_are_known() -> None:
    setup = Setup(token="s3cret", on_loopback=False)
    assert setup.post("register_worker", registration(B), headers=bearer("s3cret")).status_code == 200
    (asked,) = setup.recognised
    assert str(asked.url) == f"{B}/health" and "authorization" not in asked.headers


def test_with_the_secret_workers_may_be_anywhere() -> None:
    setup = Setup(token="s3cret", on_loopback=False)
    far = "http://gpu.example.com:21002"
    peer = ("203.0.113.5", 9)
    assert setup.post("register_worker", registration(far), peer, headers=bearer("s3cret")).status_code == 200
    assert setup.post("get_worker_address", {"model": "m"}).json() == {"address": far}


@pytest.mark.parametrize(
    "name",
    [
        "http://127.0.0.1:1/admin",
        "http://user@127.0.0.1:1",
        "file:///etc/passwd",
        "http://127.0.0.1:1?a",
        "",
        "\n",
        None,
        1,
    ],
)
def test_an_address_is_checked_even_with_the_secret(name: Any) -> None:
    setup = Setup(token="s3cret")
    reply = setup.post("register_worker", registration(name, None), headers=bearer("s3cret"))
    assert reply.status_code == 400
    assert "worker_name" in reply.json()["error"]["message"]
    assert setup.asked == []


@pytest.mark.parametrize(
    "status",
    [{}, [], "idle", {**STATUS, "speed": "fast"}, {**STATUS, "queue_length": -1}, {**STATUS, "model_names": 1}],
)
def test_a_status_is_checked(status: Any) -> None:
    setup = Setup()
    assert setup.post("register_worker", registration(A, status)).status_code == 400
    assert setup.registry.workers() == {}


# LLaVA's calls


def test_a_worker_that_tells_no_status_is_asked_with_the_secret() -> None:
    setup = Setup({A: lambda request: httpx.Response(200, json=STATUS)}, token="s3cret")
    assert setup.post("register_worker", registration(A, None), headers=bearer("s3cret")).status_code == 200
    (asked,) = setup.asked
    assert (asked.method, str(asked.url)) == ("POST", f"{A}/worker_get_status")
    assert asked.headers["authorization"] == "Bearer s3cret"
    assert setup.registry.models() == ["m"]


def silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (unreachable, "it cannot be reached (ConnectError)"),
        (silent, "it does not reply in time"),
        (lambda request: httpx.Response(401), "does not accept the controller; start both with the same worker token"),
        (lambda request: httpx.Response(500), "it replies HTTP 500 to POST /worker_get_status"),
        (lambda request: httpx.Response(200, text="hello"), "its reply is not a worker's status"),
        (lambda request: httpx.Response(200, content=b" " * 100_000), "its reply is not a worker's status"),
        (lambda request: httpx.Response(302, headers={"Location": "http://10.0.0.1/"}), "it replies HTTP 302"),
    ],
)
def test_a_worker_that_gives_no_status_is_not_registered_and_told_why(answer: Handler, why: str) -> None:
    setup = Setup({A: answer})
    reply = setup.post("register_worker", registration(A, None))
    assert reply.status_code == 502 and f"the worker {A} " in reply.text and why in reply.text
    assert setup.registry.workers() == {}
    assert len(setup.asked) == 1  # no redirect is followed


def test_the_models_of_an_address_are_those_that_are_served_there(caplog: pytest.LogCaptureFixture) -> None:
    """A second worker that was started with the address of another one cannot hide that one's models."""
    setup = Setup({A: lambda request: httpx.Response(200, json=STATUS)}).known(A)
    other = {**STATUS, "model_names": ["n"]}
    assert setup.post("register_worker", registration(A, other)).status_code == 200
    assert setup.registry.models() == ["m"]
    assert f"a worker with n registered as {A}, where m is served" in caplog.text
    setup.workers = {}  # a worker that registers before it answers, as LLaVA's
    assert setup.post("register_worker", registration(A, other)).status_code == 200
    assert setup.registry.models() == ["n"]


def test_a_heartbeat_of_an_unknown_worker_says_so() -> None:
    setup = Setup()
    assert setup.post("receive_heart_beat", {"worker_name": A, "queue_length": 0}).json() == {"exist": False}


def test_a_worker_may_say_goodbye() -> None:
    setup = Setup().known(A, B)
    assert setup.post("unregister_worker", {"worker_name": A}).status_code == 200
    assert list(setup.registry.workers()) == [B]


def test_refreshing_drops_the_workers_that_do_not_answer() -> None:
    renewed = {**STATUS, "model_names": ["m", "n"]}
    setup = Setup({B: lambda request: httpx.Response(200, json=renewed)}).known(A, B)
    assert setup.post("refresh_all_workers").json() is None
    assert list(setup.registry.workers()) == [B]
    assert setup.post("list_models").json() == {"models": ["m", "n"]}


def test_templates_that_workers_state_are_listed_beside_the_models() -> None:
    setup, stated = Setup(), {**STATUS, "conv_modes": {"m": "mistral_instruct"}}
    setup.post("register_worker", {"worker_name": A, "check_heart_beat": True, "worker_status": stated})
    assert setup.post("list_models").json() == {"models": ["m"], "conv_modes": {"m": "mistral_instruct"}}
    assert setup.post("worker_get_status").json() == stated


def test_where_no_worker_serves_a_model_the_address_is_empty() -> None:
    setup = Setup().known(A)
    assert setup.post("get_worker_address", {"model": "other"}).json() == {"address": ""}


def test_a_worker_registered_by_hand_is_offered_as_often_as_it_is_asked_for() -> None:
    setup = Setup().known(A)
    setup.post("register_worker", registration(B, check_heart_beat=False))
    setup.post("receive_heart_beat", {"worker_name": A, "queue_length": 1})
    for _ in range(5):
        assert setup.post("get_worker_address", {"model": "m"}).json() == {"address": B}


def test_a_controller_is_a_worker_to_another_one() -> None:
    setup = Setup().known(A, B)
    assert setup.post("worker_get_status").json() == {"model_names": ["m"], "speed": 2, "queue_length": 0}


@pytest.mark.parametrize("route", ["register_worker", "receive_heart_beat", "get_worker_address"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"model": 1}', b"\xff", b"[" * 50_000])
def test_malformed_requests_are_refused_in_words(route: str, content: bytes) -> None:
    reply = Setup().post(route, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_request"


# Clients' keys


ROUTES = ("list_models", "get_worker_address", "refresh_all_workers", "worker_generate_stream", "worker_get_status")


@pytest.mark.parametrize("route", ROUTES)
def test_clients_need_a_key_where_there_are_keys_and_a_controller_above_the_workers_token(route: str) -> None:
    """A controller calls what it calls of a worker, with the token that they share; clients' routes take keys alone."""
    setup = Setup(token="s3cret", keys=["k1", "k2"])
    is_workers = route.startswith("worker_")
    for headers in ({}, bearer("k3"), *([] if is_workers else [bearer("s3cret")])):
        reply = setup.post(route, ASKED, headers=headers)
        assert (reply.status_code, reply.json()["error_code"]) == (401, 1)
    for key in ("k1", "k2", *(["s3cret"] if is_workers else [])):
        assert setup.post(route, ASKED, headers=bearer(key)).status_code != 401


def get(path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Setup(**options).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_health_needs_no_key() -> None:
    assert get("/health", keys=["k"]).json() == {"status": "ok"}


@pytest.mark.parametrize("route", ["list_models", "register_worker", "worker_generate_stream"])
def test_other_methods_are_405_and_name_the_one_allowed(route: str) -> None:
    reply = get(f"/{route}")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json()["error"]["code"] == "method_not_allowed"


def test_what_is_not_there_is_404() -> None:
    reply = get("/nowhere")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
