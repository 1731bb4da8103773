"""What the GPU tests share: the device, exact float32, checkpoints. Without a GPU all are skipped for one reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.llava.checkpoints import make_llava_checkpoint

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the flag that tries the tests on a CPU."""
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda", help="where the tests of tests/gpu run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of this folder, skips them where there is no GPU, and puts the longest last."""
    absent = config.getoption("--device") == "cuda" and not torch.cuda.is_available()
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            if absent:
                item.add_marker(pytest.mark.skip(reason="torch finds no GPU on this machine"))
    items.sort(key=lambda item: item.path == HERE / "test_compiling.py")  # takes longest, so comes last


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where models run."""
    return request.config.getoption("--device")


@pytest.fixture
def gpu(device: str) -> str:
    """A GPU, for what a CPU cannot try."""
    if device == "cpu":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Keeps float32 products from being rounded to TensorFloat-32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint of float32 weights."""
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))
