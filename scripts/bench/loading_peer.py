"""Compares loading with transformers' `from_pretrained`: `python -m scripts.bench.loading_peer [--shape 1b]`, Linux.

Writes the same random weights, bfloat16 safetensors in shards, in LLaVA's format and in transformers', and loads them
on the CPU by `load_pretrained_model` and by `LlavaForConditionalGeneration.from_pretrained`, each time in a new
process, in turns. Times begin after the imports and end when every page of the weights was read; ours include the
tokenizer and the image processor. Peaks are of private memory, and of that with the files' mapped pages. The model is
built on the meta device and its weights are drawn shard by shard; 7B takes 28 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.loading import resident
from scripts.bench.machine import machine_line
from scripts.markdown_table import table_head, table_row

TEXT = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 18, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Language models: Vicuna-7B's shape, and smaller ones."""

CLIP = {"tiny": (64, 128, 4, 1), "1b": (1024, 4096, 24, 16), "7b": (1024, 4096, 24, 16)}
"""hidden_size, intermediate_size, num_hidden_layers and num_attention_heads of the tower: CLIP ViT-L/14-336's."""

SHARD = 500_000_000
"""Bytes of a shard at least, but for the last."""

WAYS = ("load_pretrained_model", "from_pretrained")


def peer_config(shape: str) -> Any:
    """Builds the configuration of transformers' LLaVA."""
    from transformers import LlavaConfig

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    vision |= dict(zip(names, CLIP[shape], strict=True))
    text = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, **TEXT[shape]}
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, dtype="bfloat16")


def write_both(shape: str, ours: Path, theirs: Path) -> int:
    """Writes one model's weights in both formats; returns their bytes in one of them."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlavaForConditionalGeneration

    from llava.model.loading.tokenizer import load_tokenizer
    from llava.utils import demo_model_path

    config = peer_config(shape)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    generator, shard, size, total = torch.Generator().manual_seed(0), {}, 0, 0
    folders = ((theirs, lambda name: name), (ours, llava_name))
    maps: list[dict[str, str]] = [{}, {}]
    parameters = dict(model.named_parameters())
    for number, (name, parameter) in enumerate(parameters.items()):
        shard[name] = torch.randn(parameter.shape, generator=generator).mul_(0.02).bfloat16()
        size += shard[name].numel() * 2
        if size < SHARD and number + 1 < len(parameters):
            continue
        for (folder, rename), places in zip(folders, maps, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            file = f"model-{number:05d}.safetensors"
            save_file({rename(key): tensor for key, tensor in shard.items()}, folder / file, {"format": "pt"})
            places.update(dict.fromkeys(map(rename, shard), file))
        total, shard, size = total + size, {}, 0
    for (folder, _), places in zip(folders, maps, strict=True):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        load_tokenizer(demo_model_path()).save_pretrained(folder)
    config.save_pretrained(theirs)
    (ours / "config.json").write_text(json.dumps(llava_config(config)))
    return total


def llava_name(name: str) -> str:
    """Gives a weight of transformers' LLaVA the name that LLaVA's code gives it."""
    renames = (
        ("model.language_model.", "model."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    )
    for old, new in renames:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def llava_config(config: Any) -> dict[str, Any]:
    """Builds config.json of LLaVA's format."""
    text = config.text_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **{name: getattr(text, name) for name in names},
        "max_position_embeddings": text.max_position_embeddings,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_config": {**config.vision_config.to_dict(), "projection_dim": 768},
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": config.vision_config.hidden_size,
        "image_aspect_ratio": "pad",
        "torch_dtype": "bfloat16",
    }


def measure(way: str, folder: str) -> None:
    """Loads once and prints seconds, the weights' MiB and both peaks as JSON."""
    from transformers import LlavaForConditionalGeneration

    from llava.model.builder import load_pretrained_model

    start, peak, done = resident(), [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[:] = map(max, peak, resident())
            done.wait(0.005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    if way == "from_pretrained":
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="bfloat16", device_map={"": "cpu"})
    else:
        model = load_pretrained_model(folder, device="cpu", torch_dtype="bfloat16")[1]
    for parameter in model.parameters():
        parameter.view(-1)[::1024].sum()  # mapped weights are read once they are touched: every page has one of these
    seconds = time.perf_counter() - began, time.process_time() - cpu
    done.set()
    watcher.join()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    private, total = (high - low for high, low in zip(peak, start, strict=True))
    print(json.dumps({"seconds": seconds, "weights": weights, "private": private, "total": total}))


def run_once(way: str, folder: Path) -> dict[str, Any]:
    """Measures one load in a new process."""
    command = [sys.executable, "-m", "scripts.bench.loading_peer", "--measure", way, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder} could not be loaded by {way}; see the error above")
    return json.loads(done.stdout)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="loading_peer", description=__doc__.split(":")[0])
    parser.add_argument("--shape", choices=TEXT, default="1b", help="of the language model (%(default)s)")
    parser.add_argument("--repeats", type=integer(), default=5, help="turns of each way (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the weights are kept, and used again (default: nowhere)")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "DIR"), help=argparse.SUPPRESS)
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Writes the weights, loads them in turns and prints medians, and the medians of the turns' ratios."""
    if args.measure:
        measure(*args.measure)
        return
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as place:
        folders = dict(zip(WAYS, (Path(place) / "llava", Path(place) / "transformers"), strict=True))
        if not all((folder / "config.json").is_file() for folder in folders.values()):
            write_both(args.shape, *folders.values())
        size = sum(file.stat().st_size for file in folders["from_pretrained"].glob("*.safetensors"))
        for way, folder in folders.items():
            run_once(way, folder)  # the files are then in the system's cache
        turns = [{way: run_once(way, folder) for way, folder in folders.items()} for _ in range(args.repeats)]
    about = f"{args.shape}: {size / 2**20:.0f} MiB of bfloat16 weights; {args.repeats} turns after one of each."
    print(f"{report(turns)}\n\n{machine_line(more=about)}")


def report(turns: Sequence[dict[str, dict[str, Any]]]) -> str:
    """Formats medians of each way, and the medians of the ratios of turns."""
    lines = [table_head(["", "seconds", "CPU seconds", "peak private, MiB", "with mapped files, MiB"])]
    rows = {way: [(*turn[way]["seconds"], turn[way]["private"], turn[way]["total"]) for turn in turns] for way in WAYS}
    for way in WAYS:
        wall, cpu, private, total = (statistics.median(column) for column in zip(*rows[way], strict=True))
        lines.append(table_row([f"`{way}`", f"{wall:.2f}", f"{cpu:.2f}", f"{private:.0f}", f"{total:.0f}"]))
    pairs = zip(*(rows[way] for way in WAYS), strict=True)
    ratios = [[ours / max(theirs, 1e-9) for ours, theirs in zip(*pair, strict=True)] for pair in pairs]
    wall, cpu, private, total = (statistics.median(column) for column in zip(*ratios, strict=True))
    lines.append(table_row(["ratio", *(f"{each:.2f}" for each in (wall, cpu, private, total))]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
