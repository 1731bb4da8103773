"""Measures the peak memory of loading a checkpoint: `python -m scripts.bench.loading [--checkpoint DIR]`, Linux.

Without a checkpoint it writes a random LLaVA of about 330 MB (float16, two shards) to a temporary folder, as
safetensors and as .bin, and loads it in float16 and in float32, each time in a new process. Two peaks are
printed as shares of the loaded weights: private memory, and private memory with the pages of the files mapped, which
the system can drop at any time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from scripts.bench.machine import machine_line
from scripts.bench.shapes import CLIP_SMALL
from scripts.markdown_table import table_head, table_row


def write_checkpoint(folder: Path, as_bin: bool) -> None:
    """Writes a random LLaVA in two shards, with the tokenizer of the embedded model."""
    import torch
    from safetensors.torch import load_file

    from llava.model import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.loading.tokenizer import load_tokenizer
    from llava.utils import demo_model_path

    tokenizer = load_tokenizer(demo_model_path())
    config = LlavaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=10,
        num_attention_heads=16,
        mm_vision_config=CLIP_SMALL,
        mm_projector_type="mlp2x_gelu",
    )
    LlavaLlamaForCausalLM(config).half().save_pretrained(folder, max_shard_size="200MB")
    tokenizer.save_pretrained(folder)
    if as_bin:
        index_file = folder / "model.safetensors.index.json"
        index = json.loads(index_file.read_text())
        names = {name: name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin") for name in
                 set(index["weight_map"].values())}  # fmt: skip
        for name, new_name in names.items():
            torch.save(load_file(folder / name), folder / new_name)
            (folder / name).unlink()
        index["weight_map"] = {key: names[name] for key, name in index["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        index_file.unlink()


def resident() -> tuple[float, float]:
    """Reads the private and total resident memory of this process, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    private, total = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))
    return private, total


def measure(folder: str, dtype: str) -> None:
    """Loads once and prints the weights' size and both peaks as JSON."""
    from llava.model.builder import load_pretrained_model

    start, peak, done = resident(), [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[:] = map(max, peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    model = load_pretrained_model(folder, device="cpu", torch_dtype=dtype)[1]
    touched = sum(float(parameter.detach().sum()) for parameter in model.parameters())  # mapped weights count once read
    done.set()
    watcher.join()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
    print(json.dumps([weights, peak[0] - start[0], peak[1] - start[1], touched]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="loading", description=__doc__.split(":")[0])
    parser.add_argument("--checkpoint", help="measure this folder instead of a random model")
    parser.add_argument("--measure", nargs=2, metavar=("DIR", "DTYPE"), help=argparse.SUPPRESS)
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures every checkpoint in both precisions and prints a table."""
    if args.measure:
        measure(*args.measure)
        return
    print(table_head(["checkpoint", "loaded as", "weights, MiB", "peak private / weights", "with mapped files"]))
    with tempfile.TemporaryDirectory() as scratch:
        folders = {args.checkpoint: args.checkpoint} if args.checkpoint else {}
        for kind in () if args.checkpoint else ("safetensors", "bin"):
            folders[f"float16 {kind}"] = str(Path(scratch) / kind)
            write_checkpoint(Path(scratch) / kind, as_bin=kind == "bin")
        for name, folder in folders.items():
            for dtype in ("float16", "float32"):
                command = [sys.executable, "-m", "scripts.bench.loading", "--measure", folder, dtype]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{folder} could not be measured as {dtype}; see the error above")
                weights, private, total, _ = json.loads(done.stdout)
                ratios = [f"{peak / weights:.2f}" for peak in (private, total)]
                print(table_row([name, dtype, f"{weights:.0f}", *ratios]), flush=True)
    print(f"\n{machine_line()}")


if __name__ == "__main__":
    sys.exit(main())
