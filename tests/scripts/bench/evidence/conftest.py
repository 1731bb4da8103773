"""The embedded model, loaded once for the tests of the evidence."""

from __future__ import annotations

import pytest

from llava.utils import demo_model_path
from scripts.bench.evidence.answering.subject import Subject


@pytest.fixture(scope="session")
def subject() -> Subject:
    return Subject(demo_model_path(), {}, "cpu", 4096)
