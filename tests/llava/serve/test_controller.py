"""The controller takes workers from those who may register them, answers LLaVA's calls, and passes answers on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import Any

import httpx
import pytest

from llava.serve.controller import parse_args
from llava.serve.http.limits import RequestLimits
from llava.serve.workers import dispatcher
from llava.serve.workers.controller_app import create_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.protocol import WorkerStatus, frame
from llava.serve.workers.registry import Registry

A, B = "http://127.0.0.1:1001", "http://127.0.0.1:1002"
STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
HERE = ("127.0.0.1", 50000)
AT_ONCE = Timeouts(newcomers=0)
ASKED = {"model": "m", "prompt": "Hi"}

Handler = Callable[[httpx.Request], httpx.Response]


async def streamed(*pieces: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if then is not None:
        raise then


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no route", request=request)


class Setup:
    """A controller in this process, and what its workers answer to it."""

    def __init__(self, workers: dict[str, Handler] | None = None, **options: Any) -> None:
        self.workers = workers or {}
        self.asked: list[httpx.Request] = []
        self.registry = Registry()
        token = options.get("token")
        timeouts = options.pop("timeouts", AT_ONCE)
        self.dispatcher = Dispatcher(self.registry, token, timeouts, httpx.MockTransport(self.answer))
        self.app = create_app(self.dispatcher, **{"on_loopback": True, **options})

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":  # who registers is asked whether it is the controller itself
            return httpx.Response(404)
        self.asked.append(request)
        reply = self.workers.get(f"{request.url.scheme}://{request.url.netloc.decode()}", unreachable)(request)
        if not reply.is_closed:
            return reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=streamed(reply.content))

    def known(self, *names: str) -> Setup:
        """With these workers registered."""
        for name in names:
            assert self.post("register_worker", registration(name)).status_code == 200
        return self

    def post(
        self,
        route: str,
        body: Any = None,
        peer: tuple[str, int] = HERE,
        host: str = "localhost:21001",
        **options: Any,
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=peer)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.post(f"/{route}", json=body, **options)

        return asyncio.run(send())


def registration(name: str = A, status: Any = STATUS, **fields: Any) -> dict[str, Any]:
    return {"worker_name": name, "check_heart_beat": True, "worker_status": status, **fields}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def frames(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.content.endswith(b"\0")
    return [json.loads(one) for one in reply.content.split(b"\0")[:-1]]


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


@pytest.mark.parametrize(
    "answer",
    [
        unreachable,
        lambda request: httpx.Response(500),
        lambda request: httpx.Response(200, text="hello"),
        lambda request: httpx.Response(200, content=b" " * 100_000),
        lambda request: httpx.Response(302, headers={"Location": "http://10.0.0.1/"}),
    ],
)
def test_a_worker_that_gives_no_status_is_not_registered(answer: Handler) -> None:
    setup = Setup({A: answer})
    assert setup.post("register_worker", registration(A, None)).status_code == 502
    assert setup.registry.workers() == {}
    assert len(setup.asked) == 1  # no redirect is followed


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


@pytest.mark.parametrize(
    "route", ["list_models", "get_worker_address", "refresh_all_workers", "worker_generate_stream", "worker_get_status"]
)
def test_clients_need_a_key_where_there_are_keys_and_the_workers_secret_is_none(route: str) -> None:
    setup = Setup(token="s3cret", keys=["k1", "k2"])
    for headers in ({}, bearer("k3"), bearer("s3cret")):
        reply = setup.post(route, ASKED, headers=headers)
        assert (reply.status_code, reply.json()["error_code"]) == (401, 1)
    for key in ("k1", "k2"):
        assert setup.post(route, ASKED, headers=bearer(key)).status_code != 401


def test_health_needs_no_key() -> None:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(Setup(keys=["k"]).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/health")

    assert asyncio.run(get()).json() == {"status": "ok"}


# Passing answers on


def generating(*pieces: bytes, then: Exception | None = None) -> Handler:
    """A worker that answers with these bytes, and may break off."""
    return lambda request: httpx.Response(200, content=streamed(*pieces, then=then))


def ask(setup: Setup, **fields: Any) -> httpx.Response:
    return setup.post("worker_generate_stream", {**ASKED, **fields})


def test_a_request_reaches_the_worker_as_it_came() -> None:
    setup = Setup({A: generating(frame("Hi"), frame("Hi you"))}).known(A)
    content = b'{"prompt": "Hi",  "model":"m", "later_field": [1e2]}'
    reply = setup.post("worker_generate_stream", content=content)
    assert frames(reply) == [{"text": "Hi", "error_code": 0}, {"text": "Hi you", "error_code": 0}]
    (asked,) = setup.asked
    assert (asked.content, asked.url.path) == (content, "/worker_generate_stream")
    assert "authorization" not in asked.headers
    assert setup.registry.status().queue_length == 0


@pytest.mark.parametrize(("workers", "status", "said"), [([], 503, "no worker is registered"), ([A], 404, "served: m")])
def test_no_worker_is_error_2(workers: list[str], status: int, said: str) -> None:
    reply = ask(Setup().known(*workers), model="other")
    (told,) = frames(reply)
    assert (reply.status_code, told["error_code"]) == (status, 2)
    assert said in told["text"]


def test_an_unreachable_worker_is_dropped_and_the_next_one_asked() -> None:
    setup = Setup({B: generating(frame("Hi you"))}).known(A, B)
    assert frames(ask(setup)) == [{"text": "Hi you", "error_code": 0}]
    assert list(setup.registry.workers()) == [B]


def test_no_reachable_worker_is_error_3() -> None:
    reply = ask(Setup().known(A, B))
    (told,) = frames(reply)
    assert (reply.status_code, told["error_code"]) == (502, 3)


def test_a_worker_that_is_full_passes_the_request_to_the_next_one() -> None:
    full = httpx.Response(429, content=b'{"text": "full", "error_code": 1}\0', headers={"Retry-After": "7"})
    setup = Setup({A: lambda request: full, B: generating(frame("Hi you"))}).known(A, B)
    assert frames(ask(setup)) == [{"text": "Hi you", "error_code": 0}]
    assert list(setup.registry.workers()) == [A, B]


def test_when_all_are_full_the_client_is_told_when_to_come_back() -> None:
    full = b'{"text": "full", "error_code": 1}\0'
    setup = Setup().known(A, B)
    setup.workers = {
        name: lambda request: httpx.Response(429, content=full, headers={"Retry-After": "7"}) for name in (A, B)
    }
    reply = ask(setup)
    assert (reply.status_code, reply.headers["retry-after"], reply.content) == (429, "7", full)
    assert setup.registry.status().queue_length == 0


@pytest.mark.parametrize("status", [400, 413])
def test_a_refusal_of_the_request_itself_is_final(status: int) -> None:
    refusal = b'{"text": "no such thing", "error_code": 1}'
    setup = Setup().known(A, B)
    setup.workers = {name: lambda request: httpx.Response(status, content=refusal) for name in (A, B)}
    reply = ask(setup)
    assert (reply.status_code, reply.content) == (status, refusal + b"\0")
    assert len(setup.asked) == 1


@pytest.mark.parametrize("status", [200, 204, 302, 401, 403, 404, 500])
@pytest.mark.parametrize("content", [b"", b"<html>secret /path</html>", b'{"detail": "secret"}', b" " * 100_000])
def test_what_is_no_answer_is_not_passed_on(status: int, content: bytes) -> None:
    setup = Setup().known(A)
    setup.workers = {A: lambda request: httpx.Response(status, content=content, headers={"Location": "http://b/"})}
    reply = ask(setup)
    (told,) = frames(reply)
    head = 200 if status == 200 else 502  # that of a stream leaves before its first frame
    assert (reply.status_code, told["error_code"]) == (head, 1)
    assert told["error"]["code"] == ("worker_refused" if status in (401, 403) else "worker_failed")
    assert "secret" not in reply.text
    assert len(setup.asked) == 1


@pytest.mark.parametrize(
    "junk",
    [b"secret\0", b'{"text": "secret"}\0', b'{"text": 1, "error_code": 0}\0', b'{"text": "sec', b"\xff\0", b"[]\0"],
)
def test_what_is_no_frame_ends_an_answer(junk: bytes) -> None:
    setup = Setup({A: generating(frame("Hi"), junk)}).known(A)
    first, last = frames(ask(setup))
    assert first == {"text": "Hi", "error_code": 0}
    assert (last["error_code"], last["error"]["code"]) == (1, "worker_failed")
    assert "sec" not in last["text"]
    assert setup.registry.status().queue_length == 0


def test_what_a_worker_adds_to_a_frame_is_passed_on() -> None:
    more = frame("Hi you", {"usage": {"completion_tokens": 1}})
    assert ask(Setup({A: generating(more)}).known(A)).content == more


@pytest.mark.parametrize("half", [b"", frame("Hi you there")[:10]])
@pytest.mark.parametrize("error", [httpx.RemoteProtocolError("closed"), httpx.ReadError("reset")])
def test_a_worker_that_dies_amid_an_answer_is_error_3_after_whole_frames(half: bytes, error: Exception) -> None:
    setup = Setup({A: generating(frame("Hi"), half, then=error)}).known(A)
    first, last = frames(ask(setup))
    assert first == {"text": "Hi", "error_code": 0}
    assert last["error_code"] == 3
    assert setup.registry.workers() == {}


def test_a_worker_that_only_says_nothing_is_kept() -> None:
    setup = Setup({A: generating(frame("Hi"), then=httpx.ReadTimeout("slow"))}).known(A)
    assert [told["error_code"] for told in frames(ask(setup))] == [0, 3]
    assert list(setup.registry.workers()) == [A]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": 1}', b'{"model": "\\ud800"}', b"\xff\0"])
def test_malformed_requests_for_an_answer_get_a_frame(content: bytes) -> None:
    reply = Setup().known(A).post("worker_generate_stream", content=content)
    assert reply.status_code == 400
    assert frames(reply)[0]["error_code"] == 1


def test_a_body_beyond_the_limit_goes_to_no_worker() -> None:
    setup = Setup(limits=RequestLimits(max_body=1000)).known(A)
    reply = ask(setup, images=["x" * 1000])
    assert (reply.status_code, reply.json()["error_code"]) == (413, 1)
    assert setup.asked == []


@pytest.mark.parametrize(
    "route", ["register_worker", "receive_heart_beat", "unregister_worker", "get_worker_address", "list_models"]
)
def test_only_a_request_for_an_answer_may_be_long(route: str) -> None:
    """What is short is parsed where all answers pass through, which must not stop for it."""
    setup = Setup().known(A)
    many = {**registration(), "queue_length": 0, "model": "m", "z": [[]] * 30_000}
    reply = setup.post(route, many)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert setup.post("worker_generate_stream", many).status_code == 502


# After a restart


def test_soon_after_the_start_a_request_waits_for_its_worker() -> None:
    setup = Setup({A: generating(frame("Hi you"))}, timeouts=Timeouts(newcomers=30))

    async def expected() -> None:
        while not setup.dispatcher.expecting:
            await asyncio.sleep(0)

    async def both() -> httpx.Response:
        transport = httpx.ASGITransport(setup.app, client=HERE)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            early = asyncio.create_task(client.post("/worker_generate_stream", json=ASKED))
            await asyncio.wait_for(expected(), 10)
            await client.post("/register_worker", json=registration())
            return await asyncio.wait_for(early, 10)

    assert frames(asyncio.run(both())) == [{"text": "Hi you", "error_code": 0}]


def test_a_worker_that_never_turns_up_is_not_waited_for_longer() -> None:
    setup = Setup(timeouts=Timeouts(newcomers=0.05))
    assert frames(ask(setup))[0]["error_code"] == 2


def test_a_crowd_is_not_kept_waiting_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MAX_EXPECTING", 2)
    setup = Setup({A: generating(frame("Hi you"))}, timeouts=Timeouts(newcomers=30))

    async def crowd() -> tuple[list[httpx.Response], list[httpx.Response]]:
        transport = httpx.ASGITransport(setup.app, client=HERE)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [asyncio.create_task(client.post("/worker_generate_stream", json=ASKED)) for _ in range(5)]
            at_once = [await one for one in islice(asyncio.as_completed(asked, timeout=600), 3)]
            await client.post("/register_worker", json=registration())
            return at_once, await asyncio.gather(*asked)

    at_once, answers = asyncio.run(crowd())
    assert [(reply.status_code, frames(reply)[0]["error"]["code"]) for reply in at_once] == [(503, "no_worker")] * 3
    assert sorted(reply.status_code for reply in answers) == [200, 200, 503, 503, 503]
    assert setup.dispatcher.expecting == 0


# Flags


def test_flags_have_llavas_names_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    args = parse_args([])
    assert (args.host, args.port, args.dispatch_method) == ("127.0.0.1", 21001, "shortest_queue")
    assert parse_args(["--dispatch-method", "lottery"]).dispatch_method == "lottery"
    assert not hasattr(args, "max_images")  # it passes requests on; what is in them is for the worker to check
    monkeypatch.setenv("LLAVA_WORKER_TOKEN", "s3cret")
    assert parse_args(["--host", "0.0.0.0"]).worker_token == "s3cret"


def test_a_controller_that_no_worker_could_register_with_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    with pytest.raises(SystemExit):
        parse_args(["--host", "0.0.0.0"])
    assert "--host 0.0.0.0 needs --worker-token" in capsys.readouterr().err
