"""Checkpoints on a GPU: half precision, 8 and 4 bits, device maps and kinds of attention give the logits they should.

The oracle is transformers' own LlavaForConditionalGeneration of the same weights, in float32 and in the dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from tests.gpu.cases import BIASED, error, logits_of
from tests.llava.checkpoints import IMAGE_TOKEN, PICTURE, oracle_logits, transformers_model
from tests.llava.model.prompts import IMAGES, ROWS

PROMPT = [1, 20, IMAGE_TOKEN_INDEX, 30, 31]
NATIVE_TREE = {"alpha": 0.0, "max_tokens": None}
TOWERS = pytest.mark.parametrize("qlip", [False, NATIVE_TREE], ids=["clip", "qlip at the native grid"])


@pytest.fixture(scope="module")
def oracle() -> LlavaForConditionalGeneration:
    return transformers_model()


@pytest.fixture(scope="module")
def expected(oracle: LlavaForConditionalGeneration) -> Tensor:
    return oracle_logits(oracle)[0]


def load(folder: Path, device: str, **options: Any) -> Any:
    return load_pretrained_model(str(folder), device=device, **options)[1]


@TOWERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_in_transformers(folder, device, oracle, expected, dtype, qlip):
    model = load(folder, device, torch_dtype=dtype, qlip=qlip)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.device.type for p in model.parameters()} == {device}
    ids = torch.tensor([[1, 20] + [IMAGE_TOKEN] * 64 + [30, 31]], device=device)
    peer = transformers_model().to(device, dtype)
    theirs = error(peer(ids, pixel_values=PICTURE.to(device, dtype)).logits[0], expected)
    assert 0 < error(logits_of(model, PROMPT, [PICTURE[0]]), expected) < 2 * theirs + 1e-3


@TOWERS
def test_float32_equals_transformers(folder, device, expected, qlip):
    model = load(folder, device, torch_dtype=torch.float32, qlip=qlip)
    assert error(logits_of(model, PROMPT, [PICTURE[0]]), expected) < 1e-4


def test_a_gpu_takes_float16_unless_told_otherwise(folder, gpu):
    assert load(folder, gpu).dtype == torch.float16


@pytest.mark.parametrize(
    ("flag", "kind", "least"), [("load_8bit", "Linear8bitLt", 0.99), ("load_4bit", "Linear4bit", 0.8)]
)
def test_a_quantised_model_answers_nearly_as_before(folder, device, expected, flag, kind, least):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = load(folder, device, qlip=NATIVE_TREE, **{flag: True})
    assert sum(type(module).__name__ == kind for module in model.modules()) == 2 * 7
    found = logits_of(model, PROMPT, [PICTURE[0]])
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > least


@pytest.mark.parametrize("device_map", ["auto", {"": 0}, "cuda:0"], ids=["auto", "one", "by name"])
def test_a_device_map_changes_no_logits(folder, gpu, expected, device_map):
    model = load(folder, gpu, device_map=device_map, torch_dtype=torch.float32, qlip=NATIVE_TREE)
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert error(logits_of(model, PROMPT, [PICTURE[0]]), expected) < 1e-4


@TOWERS
def test_a_layer_that_is_offloaded_changes_no_logits(folder, device, expected, tmp_path, qlip):
    """From a GPU to the CPU's memory, or from a CPU to the disk."""
    here, away = (0, "cpu") if device == "cuda" else ("cpu", "disk")
    names = ("embed_tokens", "vision_tower", "mm_projector", "layers.0", "norm", "rotary_emb")
    placed = {**{f"model.{name}": here for name in names}, "lm_head": here, "model.layers.1": away}
    options = {"device_map": placed, "offload_folder": str(tmp_path), "torch_dtype": torch.float32}
    model = load(folder, "cuda", qlip=qlip, **options)
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert error(logits_of(model, PROMPT, [PICTURE[0]]), expected) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sdpa_and_eager_attention_agree_where_leaves_are_weighted(folder, device, dtype):
    models = [
        load(folder, device, torch_dtype=dtype, qlip=BIASED, attn_implementation=kind) for kind in ("sdpa", "eager")
    ]
    first, second = (logits_of(model, ROWS[0], IMAGES[:1]) for model in models)
    assert error(first, second) < (1e-4 if dtype == torch.float32 else 2e-2)


@torch.no_grad()
def test_an_image_alone_needs_no_mask_so_that_the_tower_runs_in_a_fused_kernel(folder, device):
    model = load(folder, device, torch_dtype=torch.float16 if device == "cuda" else torch.float32, qlip=True)
    tower, image = model.get_vision_tower(), IMAGES[3].to(device)
    (expected,) = tower.encode_tokens([image])
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses a mask
        (found,) = tower.encode_tokens([image])
    assert error(found.features, expected.features) < 2e-2


def test_flash_attention_gives_the_logits_of_sdpa(folder, gpu):
    pytest.importorskip("flash_attn", reason="flash_attn is not installed")
    settings = {**BIASED, "llm_size_bias": 0.0}
    flash = load(folder, gpu, use_flash_attn=True, torch_dtype=torch.float16, qlip=settings)
    plain = load(folder, gpu, torch_dtype=torch.float16, qlip=settings)
    assert flash.config._attn_implementation == "flash_attention_2"
    first, second = (logits_of(model, ROWS[1], IMAGES[:2]) for model in (flash, plain))
    assert error(first, second) < 2e-2
