"""The OpenAPI document tells the truth: whatever is generated from it gets a reply that it describes, and never a 500.

schemathesis makes requests that keep to the document and requests that break it, over loopback to a real server on the
embedded model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from llava.serve.engine import ChatEngine
from llava.serve.openai.app import openai_app
from llava.serve.openai.chat import APISettings
from llava.serve.openai.requests import MAX_INT
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor
from tests.llava.serve.openai.serving import CHAT, MODEL, api

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with api() as (_, client):
        yield client
        answers = re.findall(r'llava_answers_total{.*"(\w+)"} (\d+)', client.get("/metrics").text)
        assert sum(int(count) for _, count in answers) >= 50, f"few requests came as far as the model: {answers}"


def described() -> Any:
    """The document, as an application tells it whose model is never asked."""
    engine = ChatEngine(BytesTokenizer(), ScriptedModel([]), SquareProcessor(), 4096)
    config = SchemathesisConfig.from_dict({"generation": {"deterministic": True, "database": "none"}})
    return schemathesis.openapi.from_dict(openai_app(engine, APISettings((MODEL,))).openapi(), config=config)


document = described()
DEADLINE = 120  # seconds


def lead_to_the_model(asked: Any) -> None:
    """Gives a request what no generator guesses: the model's name, a question that makes sense, a short answer."""
    if not isinstance(asked, dict):
        return
    if isinstance(asked.get("model"), str):
        asked["model"] = MODEL
    messages = asked.get("messages")
    if messages and isinstance(messages, list):
        asked["messages"] = [*messages, {"role": "user", "content": "Hello"}]
    if not {"max_tokens", "max_completion_tokens"} & asked.keys():
        asked["max_tokens"] = 3
    for name in ("max_tokens", "max_completion_tokens"):
        if type(asked.get(name)) is int and 0 < asked[name] <= MAX_INT:
            asked[name] = 3


@document.parametrize()
@settings(max_examples=12, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_described_replies(case: Case, client: httpx.Client) -> None:
    lead_to_the_model(case.body)
    case.call_and_validate(base_url=str(client.base_url), checks=CHECKS, timeout=DEADLINE)


def test_the_document_has_the_version_of_the_package(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json()["info"]["version"] == version("llava-qlip")


def test_the_document_names_what_is_served(client: httpx.Client) -> None:
    found = client.get("/openapi.json").json()
    assert set(found["paths"]) == {CHAT, "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    replies = found["paths"][CHAT]["post"]["responses"]
    assert set(replies) == {"200", "4XX", "5XX"}
    assert set(replies["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"ChatRequest", "ChatCompletion", "ChatCompletionChunk", "ErrorReply"} <= set(found["components"]["schemas"])
