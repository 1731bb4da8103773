"""Metadata that reproduces an answer: settings, decoding, versions, and a hash of the checkpoint."""

from __future__ import annotations

import json
import platform
from argparse import Namespace
from hashlib import sha256
from pathlib import Path
from typing import Any

from llava.eval.run.inputs.questions import short_hash
from llava.model.loading.checkpoint import inspect
from llava.model.loading.files import hash_files
from llava.model.loading.folder import local_folder
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path, installed

PACKAGES = ("llava-qlip", "torch", "transformers", "tokenizers", "pillow", "numpy")
"""Packages whose version may change an answer."""

SUFFIXES = (".json", ".model", ".safetensors", ".bin")


def run_settings(engine: ChatEngine, sampling: Sampling, seed: int, args: Namespace, checkpoint: str) -> dict[str, Any]:
    """Builds the part of the metadata that is the same for all answers, as it reads back from JSON.

    Args:
        engine: the loaded model.
        sampling: how answers are decoded.
        seed: seed of sampled answers.
        args: the flags of `add_model_flags`.
        checkpoint: `checkpoint_hash` of the model.
    """
    config = getattr(engine.image_processor, "qlip", None)
    settings = None if config is None else config.to_dict()
    prior = None if config is None or config.interpolation != "mlp" else hash_files([Path(config.mlp)])
    model = engine.model
    values = {
        "tower": "clip" if settings is None else "qlip",
        "alpha": settings and settings["alpha"],
        "max_tokens": settings and settings["max_tokens"],
        "qlip": settings,
        "prior": prior,
        "image_aspect_ratio": model.config.image_aspect_ratio if settings is None else None,
        "prompt_template": engine.conv_mode,
        "decoding": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "num_beams": sampling.num_beams,
            "max_new_tokens": sampling.max_new_tokens,
            "seed": seed if sampling.temperature > 0 else None,
        },
        "checkpoint": checkpoint,
        "quantised": quantisation_name(args),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
    }
    return json.loads(json.dumps(values))


def quantisation_name(args: Namespace) -> str | None:
    """Names the quantisation that the flags ask for: "8bit", "4bit" or None."""
    return "8bit" if args.load_8bit else "4bit" if args.load_4bit else None


def checkpoint_hash(model_path: str | None, model_base: str | None) -> str:
    """Hashes weights, configuration and tokenizer, also of the base model and of a tower in a folder; see `hash_files`.

    A tower that the configuration names by its hub id is hashed by that name.
    """
    folders = [local_folder(str(model_path or demo_model_path()))]
    if model_base:
        folders.append(local_folder(model_base))
    configs = [inspect(folder).config for folder in folders]
    towers = {str(config.mm_vision_tower) for config in configs if config.has_tower and config.mm_vision_config is None}
    folders += [Path(tower) for tower in sorted(towers) if Path(tower).is_dir()]
    return hash_files([file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES])


def hash_image(source: str | Path | None) -> str | None:
    """Hashes an image's file, to distinguish images of the same name wherever they are stored.

    None without a file: no image, one inside the question file, or one that cannot be read.
    """
    if not isinstance(source, Path):
        return None
    digest = sha256()
    try:
        with source.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
    except OSError:
        return None
    return short_hash(digest)
