"""What `training.py` measures: the samples, the models, and the steps of training over each way's batches."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from llava.train.data.lengths import measure_lengths
from llava.train.llava_trainer import LLaVATrainer
from llava.train.run import make_data
from llava.train.throughput import BatchCounts, gather_objects
from llava.utils import demo_model_path

WAYS: dict[str, list[str]] = {
    "by count, random": [],
    "by count, grouped": ["--group_by_modality_length", "True"],
    "by tokens": ["--batch_tokens", "{budget}"],
    "by tokens, packed": ["--batch_tokens", "{budget}", "--pack", "True"],
}
"""Name -> its flags; `budget` is the number of tokens of the longest step of the first two."""
COUNTED = 2
"""Ways that are LLaVA's."""
WORKERS = (0, 1, 2)

SHORTEST, LONGEST = 5, 300
"""Tokens of an answer."""
TEXT_ONLY = 0.25
"""Share of samples without an image."""
SIDES = (112, 224, 336, 448)
"""Sides of the images in pixels."""
WORDS = ("red", "blue", "green", "yellow", "circle", "square", "cross", "ring", "left", "right", "of", "the", "and")
"""Each is one token of the embedded model."""
WARM_UP = 2
"""Steps of each way before the first turn."""

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}


def write_samples(folder: Path, count: int) -> Path:
    """Writes samples in LLaVA's format with their images, and returns the file of samples."""
    from scripts.bench.cost_models import demo_scene

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(14)
    lengths = np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST + 1), count)).astype(int)
    samples = []
    for number, length in enumerate(lengths.tolist()):
        question, sample = "What is in the picture?", {"id": number}
        if random.random() >= TEXT_ONLY:
            demo_scene(int(random.choice(SIDES)), number).save(folder / f"{number}.png")
            sample["image"], question = f"{number}.png", f"<image>\n{question}"
        answer = " ".join(random.choice(WORDS, length - 1))  # the end of the answer is a token, too
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        samples.append({**sample, "conversations": turns})
    file = folder / "samples.json"
    file.write_text(json.dumps(samples), encoding="utf-8")
    return file


def write_random(folder: Path) -> None:
    """Writes a LLaVA with random weights and the embedded model's tokenizer: 13 million parameters of language."""
    from llava.model import LlavaConfig, LlavaLlamaForCausalLM
    from llava.model.loading.tokenizer import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(demo_model_path())
    config = LlavaConfig(
        **TEXT,
        vocab_size=len(tokenizer),
        mm_vision_config=VISION,
        mm_projector_type="mlp2x_gelu",
        qlip={"max_tokens": 128},
    )
    LlavaLlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_trainer(flags: Sequence[str], model: Any = None) -> LLaVATrainer:
    """Builds a trainer as `llava.train` does, for a model that is loaded already or the one that the flags name."""
    args = parse_arguments(flags)
    training: Any = args.training
    tokenizer, loaded, template = assemble(args)
    model = loaded if model is None else model
    data, lengths = make_data(args, tokenizer, model, template), None
    if training.batches_by_tokens:
        folder = Path(training.output_dir)
        lengths = measure_lengths(data["train_dataset"], 0, 0, 1, gather_objects, folder)
    return LLaVATrainer(model=model, tokenizer=tokenizer, args=training, lengths=lengths, **data)


class TrainingVariant:
    """One way of forming batches: its trainer, the batches of an epoch, and how fast it trains on them."""

    def __init__(self, name: str, flags: Sequence[str], model: Any = None) -> None:
        self.name = name
        self.trainer = make_trainer(flags, model)
        self.batches = list(self.trainer.get_train_dataloader())
        self.counts: list[BatchCounts] = [batch["counts"] for batch in self.batches]
        self.trainer.create_optimizer()
        self._step(self.batches[:WARM_UP])
        self.rates: list[float] = []
        self.longest = max(counts.padded_tokens for counts in self.counts)
        self.total = sum(self.counts, BatchCounts())

    def take_turn(self) -> None:
        """Trains for an epoch and notes target tokens per second."""
        start = time.perf_counter()
        self._step(self.batches)
        self.rates.append(self.total.target_tokens / (time.perf_counter() - start))

    def _step(self, batches: Sequence[dict[str, Any]]) -> None:
        trainer: Any = self.trainer
        for batch in batches:
            targets = torch.tensor(batch["counts"].target_tokens, device=trainer.args.device)
            trainer.training_step(trainer.model, dict(batch), targets)
            trainer.optimizer.step()
            trainer.model.zero_grad()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def report(self) -> dict[str, Any]:
        """Collects the figures of a row."""
        total = self.total
        return {
            "name": self.name,
            "steps": len(self.batches),
            "samples": total.samples,
            "longest": self.longest,
            "padding": 1 - (total.text_tokens + total.visual_tokens) / total.padded_tokens,
            "target_tokens": total.target_tokens,
            "rates": self.rates,
        }


def measure(model: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures in turns all ways of one model, and the preparation of its data."""
    checkpoint = demo_model_path()
    if model != "demo":
        checkpoint = folder / "model"
        write_random(checkpoint)
    file = write_samples(folder / "data", options.samples)
    flags = ["--model_name_or_path", str(checkpoint), "--version", "v1", "--data_path", str(file)]
    flags += ["--image_folder", str(file.parent), "--output_dir", str(folder / "out"), "--report_to", "none"]
    flags += ["--per_device_train_batch_size", str(options.batch_size), "--mm_use_im_patch_token", "False"]
    flags += ["--model_max_length", str(options.max_length), "--bf16", str(options.bf16)]
    ways: list[TrainingVariant] = []
    for name, template in WAYS.items():
        budget = min((way.longest for way in ways[:COUNTED]), default=0)
        own = [part.format(budget=budget) for part in template]
        ways.append(TrainingVariant(name, [*flags, *own], ways[0].trainer.model if ways else None))
    data: list[dict[str, Any]] = [{"model": model, "workers": workers, "prepared": []} for workers in WORKERS]
    consumed = []
    for turn in range(options.repeats):
        for way in ways:
            way.take_turn()
        consumed.append(max(way.total.samples * way.rates[turn] / way.total.target_tokens for way in ways))
        for row in data:
            row["prepared"].append(prepare(ways[-1].trainer, row["workers"]))
    return {
        "model": model,
        "ways": [way.report() for way in ways],
        "data": [{**row, "consumed": consumed} for row in data],
    }


def prepare(trainer: LLaVATrainer, workers: int) -> float:
    """Measures samples per second of reading an epoch of batches, the start of the workers included."""
    trainer.args.dataloader_num_workers = workers
    start = time.perf_counter()
    samples = sum(batch["counts"].samples for batch in trainer.get_train_dataloader())
    return samples / (time.perf_counter() - start)
