"""After known traffic the metrics hold exactly its numbers, and each application counts for itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.http.metrics import Metrics
from tests.llava.serve.openai.serving import (
    CHAT,
    DEADLINE,
    Gate,
    Talker,
    api,
    body,
    loaded,
)

Samples = dict[tuple[str, tuple[str, ...]], float]


def read(client: httpx.Client) -> Samples:
    """The metrics: (name, values of the labels) -> value."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name.removeprefix("llava_"), tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_answers_and_their_tokens_are_counted() -> None:
    with api() as (_, client):
        asked = [body(), body(max_tokens=3), body(qlip={"enabled": False}), body(qlip={"max_tokens": 70})]
        usages = [client.post(CHAT, json=request).json()["usage"] for request in asked]
        client.post(CHAT, json=body(stream=True))
        usages.append(usages[0])
        found = read(client)
    assert found["answers_total", ("stop",)] == 4
    assert found["answers_total", ("length",)] == 1
    for kind in ("text", "image"):
        counted = found["prompt_tokens_total", ("visual" if kind == "image" else "text",)]
        assert counted == sum(usage["prompt_tokens_details"][f"{kind}_tokens"] for usage in usages)
    assert found["generated_tokens_total", ()] == sum(usage["completion_tokens"] for usage in usages)
    assert found["visual_tokens_saved_total", ()] == sum(usage["qlip"]["tokens_saved"] for usage in usages) > 0
    for name in ("queue_seconds", "time_to_first_token_seconds", "request_seconds", "seconds_per_token"):
        assert found[f"{name}_count", ()] == 5
        assert found[f"{name}_bucket", ("+Inf",)] == 5
    waits = (
        found["queue_seconds_sum", ()],
        found["time_to_first_token_seconds_sum", ()],
        found["request_seconds_sum", ()],
    )
    assert list(waits) == sorted(waits)
    summed = sum(sum(usage["seconds"].values()) for usage in usages[:4])
    assert found["request_seconds_sum", ()] > summed


def test_replies_and_errors_are_counted_by_kind() -> None:
    with api(api_keys=("sesame",)) as (engine, client):
        client.get("/v1/models")
        client.headers["Authorization"] = "Bearer sesame"
        for request in (body(n=2), body(n=3), body() | {"model": "gpt-5"}, body(max_tokens=3000)):
            client.post(CHAT, json=request)
        client.get("/nowhere")
        Talker(engine, "a", RuntimeError("broken"))
        client.post(CHAT, json=body())
        client.post(CHAT, json=body(stream=True))
        found = read(client)
    errors = {labels[0]: value for (name, labels), value in found.items() if name == "errors_total"}
    assert errors == {
        "unsupported_value": 2,
        "model_not_found": 1,
        "context_length_exceeded": 1,
        "not_found": 1,
        "model_failed": 2,
    }
    responses = {labels: value for (name, labels), value in found.items() if name == "http_responses_total"}
    assert responses == {
        ("none", "401"): 1,
        ("none", "404"): 1,
        (CHAT, "400"): 3,
        (CHAT, "404"): 1,
        (CHAT, "500"): 1,
        (CHAT, "200"): 1,  # the stream had begun
    }
    assert found["answers_total", ("failed",)] == 2
    assert found["request_seconds_count", ()] == 0


def test_requests_that_run_and_requests_that_wait_are_counted() -> None:
    with api(engine_limits=EngineLimits(max_batch=1)) as (engine, client), ThreadPoolExecutor(3) as pool:
        with Gate(engine) as gate:  # opened before the pool waits for its requests, also where an assertion fails
            requests = [pool.submit(client.post, CHAT, json=body())]
            assert gate.await_submitted(1, requests) and gate.reached.wait(DEADLINE)
            requests += [pool.submit(client.post, CHAT, json=body(max_tokens=2)) for _ in range(2)]
            assert gate.await_submitted(3, requests)
            found = read(client)
            assert (found["requests_running", ()], found["requests_waiting", ()]) == (1, 2)
            gate.opened.set()
            assert all(request.result(DEADLINE).status_code == 200 for request in requests)
        assert engine.waiting == 0
        assert read(client)["requests_waiting", ()] == 0


def test_an_answer_that_nobody_reads_is_counted_as_cancelled() -> None:
    with api() as (engine, client):
        talker = Talker(engine, "a red circle")
        with client.stream("POST", CHAT, json=body(stream=True)) as response:
            assert any("circle" in line for line in response.iter_lines())
        assert talker.answers[0].row.cancelled.wait(DEADLINE)
        found = read(client)
    assert found["answers_total", ("cancelled",)] == 1
    assert found["generated_tokens_total", ()] == len(talker.ids)
    assert found["request_seconds_count", ()] == 0


def test_applications_count_apart() -> None:
    engine = ChatEngine(*loaded())
    one, other = Metrics(engine), Metrics(engine)
    one.generated_tokens.inc(5)
    assert b"llava_generated_tokens_total 5.0" in one.text()[0]
    assert b"llava_generated_tokens_total 0.0" in other.text()[0]
    engine.close()


def test_openmetrics_is_told_to_those_who_ask_for_it() -> None:
    engine = ChatEngine(*loaded())
    text, content_type = Metrics(engine).text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert any(family.name == "llava_answers" for family in parse_openmetrics(text.decode()))
    engine.close()


def test_whatever_format_is_asked_for_the_metrics_come() -> None:
    with api() as (_, client):
        for accept in ("text/plain; version=x", "application/openmetrics-text; version=x", "*/*", "?"):
            reply = client.get("/metrics", headers={"Accept": accept})
            assert reply.status_code == 200, accept
            assert "llava_requests_waiting 0.0" in reply.text
