"""The controller forwards requests and answers, and passes over workers that fail."""

from __future__ import annotations

import asyncio
from itertools import islice

import httpx
import pytest

from llava.serve.http.limits import RequestLimits
from llava.serve.workers import dispatcher
from llava.serve.workers.dispatcher import Timeouts
from llava.serve.workers.frames import frame
from tests.llava.serve.workers.controllers import (
    ASKED,
    HERE,
    STATUS,
    A,
    B,
    Setup,
    ask,
    frames,
    generating,
    registration,
)


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
    (event,) = frames(reply)
    assert (reply.status_code, event["error_code"]) == (status, 2)
    assert said in event["text"]


def test_an_unreachable_worker_is_dropped_and_the_next_one_asked() -> None:
    setup = Setup({B: generating(frame("Hi you"))}).known(A, B)
    assert frames(ask(setup)) == [{"text": "Hi you", "error_code": 0}]
    assert list(setup.registry.workers()) == [B]


def test_no_reachable_worker_is_error_3() -> None:
    reply = ask(Setup().known(A, B))
    (event,) = frames(reply)
    assert (reply.status_code, event["error_code"]) == (502, 3)


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


def test_a_worker_that_serves_another_model_by_now_is_known_by_it_and_the_next_one_asked() -> None:
    """As one that was started anew at its address with another model."""
    wrong = httpx.Response(404, content=b'{"text": "no model \'m\' here", "error_code": 1}\0')

    def replaced(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={**STATUS, "model_names": ["n"]}) if "status" in request.url.path else wrong

    setup = Setup({A: replaced, B: generating(frame("Hi you"))}).known(A, B)
    assert frames(ask(setup)) == [{"text": "Hi you", "error_code": 0}]
    assert setup.registry.models() == ["m", "n"]
    assert setup.registry.workers()[A].status.model_names == ["n"]
    alone = Setup({A: replaced}).known(A)
    assert (ask(alone).status_code, alone.registry.models()) == (404, ["n"])


@pytest.mark.parametrize("status", [200, 204, 302, 401, 403, 404, 500])
@pytest.mark.parametrize("content", [b"", b"<html>secret /path</html>", b'{"detail": "secret"}', b" " * 100_000])
def test_what_is_no_answer_is_not_passed_on(status: int, content: bytes) -> None:
    setup = Setup().known(A)
    setup.workers = {A: lambda request: httpx.Response(status, content=content, headers={"Location": "http://b/"})}
    reply = ask(setup)
    (event,) = frames(reply)
    head = 200 if status == 200 else 502  # that of a stream leaves before its first frame
    assert (reply.status_code, event["error_code"]) == (head, 1)
    assert event["error"]["code"] == ("worker_refused" if status in (401, 403) else "worker_failed")
    assert "secret" not in reply.text
    assert [each.url.path for each in setup.asked].count("/worker_generate_stream") == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"secret\0",
        b'{"text": "secret"}\0',
        b'{"text": 1, "error_code": 0}\0',
        b'{"text": "secret", "error_code": "0"}\0',
        b'{"text": "secret", "error_code": 0, "usage": NaN}\0',
        b'{"text": "sec',
        b"\xff\0",
        b"[]\0",
    ],
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


def test_a_model_whose_workers_take_no_requests_is_not_unknown() -> None:
    setup = Setup().known(A)
    setup.post("register_worker", registration(B, {**STATUS, "model_names": ["b"], "speed": 0}))
    reply = ask(setup, model="b")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "10")
    (frame,) = frames(reply)
    assert (frame["error_code"], frame["error"]["code"]) == (2, "no_worker")
    assert "the workers of 'b' take no requests now" in frame["text"]


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
    assert [event["error_code"] for event in frames(ask(setup))] == [0, 3]
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
    setup = Setup({A: generating(frame("Hi you"))}, timeouts=Timeouts(registration_wait=30))

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
    setup = Setup(timeouts=Timeouts(registration_wait=0.05))
    assert frames(ask(setup))[0]["error_code"] == 2


def test_a_crowd_is_not_kept_waiting_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "MAX_EXPECTING", 2)
    setup = Setup({A: generating(frame("Hi you"))}, timeouts=Timeouts(registration_wait=30))

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
