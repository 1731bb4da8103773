"""A worker with the embedded model, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llava.images import ImageLimits
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.http.limits import RequestLimits
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.serve.openai.serving import loaded, served
from tests.llava.serve.workers.worker_requests import NAME


@pytest.fixture(scope="package")
def engine() -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded(), limits=EngineLimits(max_batch=4, max_waiting=2))
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def url(engine: ChatEngine) -> Iterator[str]:
    limits = RequestLimits(max_body=2**20, max_images=3, max_prompt=4000, image=ImageLimits(max_pixels=10**6))
    with served(create_app(ModelWorker(engine, [NAME], limits))) as url:
        yield url
