"""Servers of the embedded model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from llava.images import ImageLimits
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.http.limits import RequestLimits
from tests.llava.serve.openai.serving import DEADLINE, api, body

KEY = "sesame"
LIMITS = RequestLimits(
    max_body=400_000, max_images=2, max_prompt=2000, image=ImageLimits(max_pixels=1_000_000, max_bytes=200_000)
)


@pytest.fixture(scope="package")
def served() -> Iterator[tuple[ChatEngine, str]]:
    """An engine and the URL of its API, which needs a key."""
    with api(engine_limits=EngineLimits(max_waiting=32), api_keys=(KEY,)) as (engine, http_client):
        yield engine, f"{http_client.base_url}/v1"


@pytest.fixture(scope="package")
def engine(served: tuple[ChatEngine, str]) -> ChatEngine:
    return served[0]


@pytest.fixture(scope="package")
def client(served: tuple[ChatEngine, str]) -> Iterator[OpenAI]:
    """OpenAI's own client of that API."""
    with OpenAI(base_url=served[1], api_key=KEY, max_retries=0, timeout=DEADLINE) as client:
        yield client


@pytest.fixture(scope="package")
def answer(client: OpenAI) -> ChatCompletion:
    """What that API answers to a plain request, greedily and to its end."""
    return client.chat.completions.create(**body())


@pytest.fixture(scope="package")
def limited() -> Iterator[tuple[ChatEngine, httpx.Client]]:
    """An engine and an HTTP client of its API, with low limits on requests."""
    with api(limits=LIMITS) as pair:
        yield pair


@pytest.fixture(scope="package")
def limited_engine(limited: tuple[ChatEngine, httpx.Client]) -> ChatEngine:
    return limited[0]


@pytest.fixture(scope="package")
def limited_client(limited: tuple[ChatEngine, httpx.Client]) -> httpx.Client:
    return limited[1]
