"""vLLM's schemas take embeddings of any lengths after the plugin. `scripts.harness.vllm_check` runs a live vLLM."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated, get_type_hints

import pytest
import torch
from torch import Tensor

from qlip.integrations import vllm_plugin

ONE, OTHER = torch.zeros(5, 8), torch.zeros(7, 8)
MODULES = ("vllm", "vllm.utils", "vllm.utils.tensor_schema")


class TensorShape:
    """Names of dimensions, as vLLM has it."""

    def __init__(self, *dims: str, dynamic_dims: set[str] | None = None):
        self.dims, self.dynamic_dims = dims, dynamic_dims or set()


class TensorSchema:
    """As vLLM's: a list of tensors must agree in all dimensions but the dynamic ones."""

    def __init__(self, data: list[Tensor]):
        self.data = data
        self.validate()

    def validate(self) -> None:
        (shape,) = get_type_hints(type(self), include_extras=True)["data"].__metadata__
        fixed = [index for index, name in enumerate(shape.dims[1:]) if name not in shape.dynamic_dims]
        if len({tuple(tensor.shape[index] for index in fixed) for tensor in self.data}) > 1:
            raise ValueError("data contains inconsistent shapes")


@pytest.fixture
def schema(monkeypatch):
    """Stand-ins for vLLM's module and classes, which the plugin changes."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    own = type("TensorSchema", (), dict(TensorSchema.__dict__))
    sys.modules["vllm.utils.tensor_schema"].TensorSchema = own  # type: ignore[attr-defined]
    sys.modules["vllm.utils.tensor_schema"].TensorShape = TensorShape  # type: ignore[attr-defined]
    annotations = {"data": Annotated[Tensor, TensorShape("bn", "ifs", "hs")]}
    return lambda name: type(name, (own,), {"__annotations__": dict(annotations)})


@pytest.mark.parametrize("name", vllm_plugin.SCHEMAS)
def test_images_of_different_token_counts_pass_together(schema, name):
    inputs = schema(name)
    with pytest.raises(ValueError, match="inconsistent"):
        inputs([ONE, OTHER])
    vllm_plugin.register()
    vllm_plugin.register()
    inputs([ONE, OTHER])


def test_other_schemas_and_other_widths_are_refused_as_before(schema):
    vllm_plugin.register()
    with pytest.raises(ValueError, match="inconsistent"):
        schema("Qwen2VLImageEmbeddingInputs")([ONE, OTHER])
    with pytest.raises(ValueError, match="inconsistent"):
        schema("LlavaImageEmbeddingInputs")([ONE, torch.zeros(5, 9)])


def test_another_version_of_vllm_is_reported_and_starts(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.utils", None)
    vllm_plugin.register()
    assert "images of different token counts may end its engine" in caplog.text
