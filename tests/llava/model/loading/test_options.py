"""The arguments of transformers' from_pretrained that follow from a caller's devices, dtype, attention and bits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.loading.options import check_auto, choose_options


def test_a_cpu_widens_weights_unless_they_get_8_bits():
    assert choose_options("cpu", None, None, None) == {"dtype": torch.float32, "device_map": {"": "cpu"}}
    quantised = choose_options("cpu", None, None, None, eight_bit=True)
    assert quantised["dtype"] == torch.float16
    assert quantised["quantization_config"].load_in_8bit and not quantised["quantization_config"].load_in_4bit


@pytest.mark.parametrize("device_map", [None, "auto"])
def test_plain_cuda_leaves_the_devices_to_transformers(monkeypatch: pytest.MonkeyPatch, device_map: str | None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_options("cuda", device_map, None, "eager") == {
        "dtype": torch.float16,
        "device_map": "auto",
        "attn_implementation": "eager",
    }


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("llava.utils.devices", lambda: ["cpu", "cuda:0"])


@pytest.mark.parametrize("device_map", ["sequential", {"model": 0, "lm_head": "cpu"}, {"model": "disk", "lm_head": 0}])
def test_a_device_map_is_passed_on(one_gpu: None, device_map: str | dict[str, int | str]):
    assert choose_options("cuda", device_map, "bfloat16", None) == {"dtype": torch.bfloat16, "device_map": device_map}


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda"), torch.device("cuda", 0)])
def test_one_device_has_several_names(one_gpu: None, device: str | int | torch.device):
    assert choose_options("cuda", device, None, None) == {"dtype": torch.float16, "device_map": {"": "cuda:0"}}


CPU = torch.device("cpu")


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", CPU, {"": CPU}, {"model": "cpu", "lm_head": "cpu"}])
def test_without_a_gpu_weights_are_widened_however_the_device_map_names_the_cpu(device_map: Any):
    assert choose_options("cuda", device_map, None, None)["dtype"] == torch.float32


@pytest.mark.parametrize("device", ["cuda:1", 1, torch.device("cuda", 1)])
@pytest.mark.parametrize("part", ["", "model.layers.1", None])
def test_a_device_that_the_machine_lacks_is_named_with_its_part(
    one_gpu: None, device: str | int | torch.device, part: str | None
):
    device_map = device if part is None else {"lm_head": "cpu", part: device}
    place = "device_map" if part is None else f"device_map['{part}']"
    with pytest.raises(ValueError, match=re.escape(f"{place} is 'cuda:1', but this machine has cpu, cuda:0 only")):
        choose_options("cuda", device_map, None, None)


def test_an_empty_device_map_is_refused():
    with pytest.raises(ValueError, match=r"device_map is {}; it must give each part a device"):
        choose_options("cuda", {}, None, None)


def test_products_of_4_bit_weights_have_the_callers_dtype():
    settings = choose_options("cpu", None, "bfloat16", None, four_bit=True)["quantization_config"]
    assert settings.load_in_4bit and settings.bnb_4bit_compute_dtype == torch.bfloat16


COMPUTED = ("float32", "float16", "bfloat16", "float64")
STORED = ("float8_e4m3fn", "float8_e5m2", "int8", "bool", "complex64")


@pytest.mark.parametrize("name", COMPUTED + STORED)
def test_a_dtype_is_one_that_torch_builds_a_model_in(name: str):
    """Of the others torch has weights, but no layers by default."""
    before, dtype = torch.get_default_dtype(), getattr(torch, name)
    try:
        torch.set_default_dtype(dtype)
    except TypeError:
        for given in (name, dtype):
            with pytest.raises(ValueError, match="allowed are 'float32', 'float16', 'bfloat16', 'float64' and 'auto'"):
                choose_options("cpu", None, given, None)
        with pytest.raises(ValueError, match=rf"config\.json: torch_dtype is '{name}', .*: give dtype='float16'"):
            check_auto("auto", dtype, Path("folder"))
        check_auto(torch.float16, dtype, Path("folder"))
        assert name in STORED
    else:
        assert choose_options("cpu", None, name, None)["dtype"] == choose_options("cpu", None, dtype, None)["dtype"]
        check_auto("auto", dtype, Path("folder"))
        assert name in COMPUTED
    finally:
        torch.set_default_dtype(before)
