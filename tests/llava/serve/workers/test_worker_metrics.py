"""A worker counts every reply once, by the path of its route and its status."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llava.serve.engine import ChatEngine
from llava.serve.http.limits import RequestLimits
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.serve.openai.serving import CHAT, body, loaded, served
from tests.llava.serve.workers.worker_requests import NAME, request

KEY = {"Authorization": "Bearer sesame"}
ANSWERS, STATUS = "/worker_generate_stream", "/worker_get_status"


def count_responses(url: str) -> dict[tuple[str, int], int]:
    """Reads the counts: (route, status) -> replies; the reply that holds them is not counted yet."""
    families = text_string_to_metric_families(httpx.get(url + "/metrics", headers=KEY).text)
    samples = (sample for family in families for sample in family.samples if sample.name.endswith("responses_total"))
    return {(sample.labels["route"], int(sample.labels["status"])): int(sample.value) for sample in samples}


def test_every_reply_is_counted_once(engine: ChatEngine) -> None:
    limits = RequestLimits(max_body=10**5)
    seen: Counter[tuple[str, int]] = Counter()
    with served(create_app(ModelWorker(engine, [NAME], limits), ["sesame"])) as url:
        for method, path, route, options in (
            ("POST", STATUS, STATUS, {}),
            ("POST", ANSWERS, ANSWERS, {"json": request(engine, images=[], prompt="Hi", max_new_tokens=1)}),
            ("POST", ANSWERS, ANSWERS, {"content": b"no JSON"}),
            ("GET", ANSWERS, ANSWERS, {}),
            ("PUT", STATUS, STATUS, {}),
            ("POST", CHAT, CHAT, {"json": body({"role": "user", "content": "Hi"}, max_tokens=1)}),
            ("POST", CHAT, CHAT, {"json": {}}),
            ("GET", "/v1/models/nothing", "/v1/models/{model:path}", {}),
            ("GET", "/health", "/health", {}),
            ("GET", "/nowhere", "none", {}),
            ("GET", "/nowhere/else", "none", {}),
            ("POST", STATUS, "none", {"headers": {"Authorization": "no key"}}),
            ("POST", CHAT, "none", {"headers": {"Authorization": "no key"}}),
            ("POST", STATUS, "none", {"headers": {**KEY, "Origin": "http://elsewhere"}}),
            ("POST", ANSWERS, "none", {"content": b"x" * 10**6}),
        ):
            reply = httpx.request(method, url + path, **{"headers": KEY, "timeout": 600, **options})
            seen[route, reply.status_code] += 1
        assert {status for _, status in seen} == {200, 400, 401, 403, 404, 405, 413}
        assert count_responses(url) == seen


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("a fault")])
def test_replies_to_failures_of_a_worker_are_counted(engine: ChatEngine, failure: Exception) -> None:
    worker = ModelWorker(engine, [NAME])
    with served(create_app(worker)) as url:
        with patch.object(worker, "status", side_effect=failure):
            status = httpx.post(url + STATUS).status_code
        assert count_responses(url) == {(STATUS, status): 1}


def test_replies_to_failures_of_the_api_alone_are_counted() -> None:
    engine = ChatEngine(*loaded())
    with served(openai_app(engine, APISettings((NAME,)))) as url:
        with patch.object(engine, "asubmit", side_effect=KeyError("a fault")):
            assert httpx.post(url + CHAT, json=body()).status_code == 500
        assert count_responses(url) == {(CHAT, 500): 1}
    engine.close()
