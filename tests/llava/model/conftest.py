"""Fixtures for tests of checkpoints: transformers' own model of the same weights."""

from __future__ import annotations

import pytest

from tests.llava.checkpoints import oracle_logits, transformers_model


@pytest.fixture(scope="module")
def oracle():
    """transformers' LLaVA with the weights of the test checkpoints."""
    return transformers_model()


@pytest.fixture(scope="module")
def expected(oracle):
    """Its logits."""
    return oracle_logits(oracle)
