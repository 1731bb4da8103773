"""The memory for earlier prompts follows the model's context, within a share of what is free."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig

from llava.serve.engine import prefix_memory
from llava.serve.engine.params import EngineLimits
from llava.serve.engine.prefix_memory import choose_prefix_bytes, count_token_bytes, find_free_bytes, find_free_memory
from llava.serve.http.metrics import Metrics
from tests.llava.serve.engine.engines import NewEngine

GIB = 2**30
VICUNA_7B = LlamaConfig()  # transformers' default is Llama 7B's


def shaped(config: Any, dtype: torch.dtype = torch.float16, device: str = "meta") -> Any:
    """A model of which only the configuration, the type and the devices matter."""
    trunk = SimpleNamespace(layers=nn.ModuleList([nn.Linear(1, 1, device=device)]))
    return SimpleNamespace(config=config, dtype=dtype, get_model=lambda: trunk)


def test_a_token_takes_what_transformers_own_cache_holds_of_it() -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=8, intermediate_size=8, vocab_size=9)).to(torch.bfloat16)
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[1, 2, 3, 4, 5]]), past_key_values=cache)
    held = sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))
    assert 5 * count_token_bytes(model) == held
    assert count_token_bytes(shaped(VICUNA_7B)) == 512 * 1024
    assert count_token_bytes(shaped(MistralConfig())) == 128 * 1024


@pytest.mark.parametrize(
    ("limit", "context", "free", "chosen"),
    [
        (None, 4096, 64 * GIB, 8 * GIB),  # four chats of 2 GiB each
        (None, 4096, 10 * GIB, 5 * GIB // 2),  # a quarter of what is free
        (None, 256, 64 * GIB, GIB),  # four chats would take 0.5 GiB
        (None, 4096, None, GIB),
        (None, 4096, 0, 0),
        (7, 4096, 64 * GIB, 7 * 2**20),
        (0, 4096, 64 * GIB, 0),
    ],
)
def test_the_size_follows_the_context_and_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: int | None,
    context: int,
    free: int | None,
    chosen: int,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(prefix_memory, "find_free_memory", lambda: free)
    assert choose_prefix_bytes(shaped(VICUNA_7B), context, EngineLimits(max_prefix_mib=limit)) == chosen
    assert f"at most {chosen // 2**20} MiB" in caplog.text and f"{2 * chosen // 2**20} tokens" in caplog.text


def test_a_model_on_a_gpu_asks_for_the_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {0: (5, 9), 1: (3, 9)}[device.index])
    layers = [SimpleNamespace(device=torch.device(f"cuda:{index}")) for index in (0, 1, 1)]
    trunk = SimpleNamespace(layers=SimpleNamespace(parameters=lambda: layers))
    assert find_free_bytes(SimpleNamespace(get_model=lambda: trunk)) == 2 * 3


def group(root: Path, name: str, most: str, taken: int, cached: int = 0, old: bool = False) -> None:
    folder = root / "sys/fs/cgroup" / ("memory" if old else "") / name
    folder.mkdir(parents=True, exist_ok=True)
    limit, used = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
    (folder / f"memory.{limit}").write_text(f"{most}\n")
    (folder / f"memory.{used}").write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")


def system(root: Path, free_kib: int, groups: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999 kB\nMemAvailable: {free_kib} kB\nHugePages_Total: 0\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def test_the_free_memory_is_the_systems_or_what_a_control_group_has_left(tmp_path: Path) -> None:
    root = system(tmp_path, 10, "0::/slice/unit\n")
    assert find_free_memory(root) == 10 * 1024
    group(root, "slice/unit", "max", 700)
    assert find_free_memory(root) == 10 * 1024  # no limit
    group(root, "slice", "9000", 700, cached=200)
    assert find_free_memory(root) == 9000 - 700 + 200
    group(root, "slice/unit", "1000", 700)
    assert find_free_memory(root) == 300
    group(root, "slice/unit", "600", 700)
    assert find_free_memory(root) == 0


def test_the_first_version_of_control_groups_and_a_containers_own_are_read(tmp_path: Path) -> None:
    root = system(tmp_path, 10, "5:cpu:/docker/x\n4:memory:/docker/x\n")
    group(root, "", "2048", 48, old=True)  # a container sees its own group as the root
    assert find_free_memory(root) == 2000
    assert find_free_memory(tmp_path / "elsewhere") is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says how much memory is available")
def test_this_machines_memory_is_about_what_psutil_says_or_less() -> None:
    found = find_free_memory()
    assert found is not None and 0 < found < psutil.virtual_memory().available * 1.2


def test_an_engine_uses_it_and_the_metrics_show_it(new_engine: NewEngine) -> None:
    engine = new_engine(max_prefix_mib=3)
    text = Metrics(engine).text()[0].decode()
    assert "llava_prefix_cache_limit_bytes 3.145728e+06" in text and "llava_prefix_cache_bytes 0.0" in text
    assert new_engine(joins=False).prefixes.most_bytes == 0
    assert new_engine(max_prefix_mib=0).prefixes.most_bytes == 0
    assert 0 < new_engine().prefixes.most_bytes <= GIB  # of the demo, four chats take less
