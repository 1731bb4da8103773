"""The arguments of transformers' from_pretrained that follow from a caller's devices, dtype, attention and bits."""

from __future__ import annotations

import pytest
import torch

from llava.model.loading.options import choose_options


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


@pytest.mark.parametrize("device_map", ["sequential", {"model": 0, "lm_head": "cpu"}])
def test_a_device_map_is_passed_on(monkeypatch: pytest.MonkeyPatch, device_map: str | dict[str, int | str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_options("cuda", device_map, "bfloat16", None) == {"dtype": torch.bfloat16, "device_map": device_map}


def test_products_of_4_bit_weights_have_the_callers_dtype():
    settings = choose_options("cpu", None, "bfloat16", None, four_bit=True)["quantization_config"]
    assert settings.load_in_4bit and settings.bnb_4bit_compute_dtype == torch.bfloat16
