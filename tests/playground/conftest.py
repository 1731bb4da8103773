"""What the tests of the demo share: its tokenizer, a model with random weights, a few scenes."""

from __future__ import annotations

import pytest
import torch

from llava.model.loading.tokenizer import load_tokenizer
from playground.dataset import SceneCache
from playground.model import DemoModel
from playground.scenes import PRESETS
from playground.vocabulary import train_vocabulary


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return load_tokenizer(vocabulary)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    return SceneCache(tmp_path_factory.mktemp("scenes"), PRESETS["base"], seed=3, count=12)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return DemoModel(len(tokenizer)).eval()
