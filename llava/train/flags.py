"""The flags of training: LLaVA's and ours as dataclasses, old spellings, and what `--help` shows.

Loads nothing heavy: transformers' own flags are read from its source file, so that `--help` and a wrong flag answer at
once. `llava.train.arguments` parses.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava.train.old_flags import DROPPED, FALSE, RENAMED, SWITCHES, TRUE, UNREAD
from qlip.config import QLIPConfig

QLIP_PREFIX = "qlip."


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is trained, and which of its parts. LLaVA's names and defaults."""

    model_name_or_path: str | None = _flag(
        "facebook/opt-125m", "language model (Llama, Vicuna) or LLaVA checkpoint: folder or hub id"
    )
    version: str | None = _flag(
        "v0", "prompt template: plain (captions, stage 1), v1 (Vicuna 1.5), llava_llama_2, mpt, ..."
    )
    freeze_backbone: bool = _flag(False, "keep the language model's trunk as it is")
    tune_mm_mlp_adapter: bool = _flag(False, "train and save the projector alone (stage 1)")
    vision_tower: str | None = _flag(None, "CLIP or SigLIP checkpoint of the tower: folder or hub id")
    mm_vision_select_layer: int | None = _flag(-1, "hidden state of the tower that is used; LLaVA v1.5: -2")
    pretrain_mm_mlp_adapter: str | None = _flag(None, "file with the projector's weights (mm_projector.bin)")
    mm_projector_type: str | None = _flag("linear", "linear or mlp<N>x_gelu; LLaVA v1.5: mlp2x_gelu")
    mm_use_im_start_end: bool = _flag(False, "put an image between <im_start> and <im_end>")
    mm_use_im_patch_token: bool = _flag(True, "add <im_patch> to the vocabulary; LLaVA v1.5: False")
    mm_patch_merge_type: str | None = _flag("flat", "flat or spatial, spatial_unpad, spatial_maxpool2x2: joins tiles")
    mm_vision_select_feature: str | None = _flag("patch", "patch, or cls_patch to keep [CLS]")
    unfreeze_mm_vision_tower: bool = _flag(False, "train the vision tower, too")
    qlip: bool | None = _flag(
        None,
        "train with the quadtree tower; its settings: --qlip.alpha 0.8, ... (default: as the checkpoint says, or off)",
    )


@dataclass
class DataArguments:
    """What is trained on. LLaVA's names and defaults, then ours."""

    data_path: str | None = _flag(None, "samples: a JSON list, JSON lines, or a folder of such files")
    lazy_preprocess: bool = _flag(False, "accepted for LLaVA's commands; samples are always read when needed")
    is_multimodal: bool = _flag(False, "set by the training where the model has a tower")
    image_folder: str | None = _flag(None, "folder that the samples' images are relative to")
    image_aspect_ratio: str = _flag(
        "square", "pad: pad images to squares; square: the image processor's own way; anyres, anyres_max_N: tiles"
    )
    image_grid_pinpoints: str | None = _flag(
        None, "resolutions of anyres: '[(336, 672), (672, 336), ...]' in pixels, or '(1x1),...,(6x6)' in tiles"
    )
    eval_data_path: str | None = _flag(None, "samples whose loss is measured; needs --eval_strategy")
    eval_questions: str | None = _flag(None, "questions with answers, asked at each evaluation; needs --eval_strategy")
    eval_image_folder: str | None = _flag(None, "folder of the evaluation's images (default: --image_folder)")
    max_bad_samples: int = _flag(10, "malformed samples and unreadable images to skip before the run ends")


@dataclass
class LlavaTrainingFields:
    """How it is trained, beyond transformers' own flags. LLaVA's names and defaults, then ours."""

    cache_dir: str | None = _flag(None, "folder of downloads")
    freeze_mm_mlp_adapter: bool = _flag(False, "keep the projector as it is")
    mpt_attn_impl: str | None = _flag("triton", "accepted for LLaVA's commands; not read")
    attn_implementation: str | None = _flag(None, "attention of the language model: sdpa, eager or flash_attention_2")
    model_max_length: int = _flag(512, "longest sequence, text and visual tokens together; longer text is cut")
    double_quant: bool = _flag(True, "quantise the constants of 4-bit weights, too")
    quant_type: str = _flag("nf4", "4-bit data type: nf4 or fp4")
    bits: int = _flag(16, "4 or 8 quantise the frozen language model (bitsandbytes)")
    lora_enable: bool = _flag(False, "train LoRA adapters of the language model, and the projector")
    lora_r: int = _flag(64, "rank of the adapters")
    lora_alpha: int = _flag(16, "scale of the adapters: lora_alpha / lora_r")
    lora_dropout: float = _flag(0.05, "dropout in front of the adapters")
    lora_weight_path: str = _flag("", "accepted for LLaVA's commands; not read")
    lora_bias: str = _flag("none", "biases to train: none, all or lora_only")
    mm_projector_lr: float | None = _flag(None, "learning rate of the projector (default: --learning_rate)")
    group_by_modality_length: bool = _flag(False, "batches of one modality and of similar length, LLaVA's rule")
    batch_tokens: int | None = _flag(None, "batches of at most this many text and visual tokens, padding included")
    pack: bool = _flag(False, "put several samples into one row of --model_max_length, without padding")


GROUPS = (
    ("model", ModelArguments),
    ("data", DataArguments),
    ("training", LlavaTrainingFields),
)


@cache
def transformers_flags() -> frozenset[str]:
    """Reads the names of transformers' training flags from its source, without importing it."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ImportError("transformers is not installed")
    source = (Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8")
    (found,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    return frozenset(
        item.target.id for item in found.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    )


def own_fields() -> dict[str, Field[Any]]:
    """Lists the flags of this file by name."""
    return {item.name: item for _, group in GROUPS for item in fields(group)}


def modernise(argv: Sequence[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """Brings a command line up to date, and takes the quadtree's settings out of it.

    Args:
        argv: the arguments after the program's name.

    Returns:
        The arguments with today's names; the settings given as `--qlip.NAME VALUE`; warnings.

    Raises:
        ValueError: an unknown flag or setting, or a setting that is out of range.
    """
    known = {*own_fields(), *transformers_flags()}
    today: list[str] = []
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    switches: dict[str, bool] = {}  # the last of equal flags counts
    for name, given in _choose_warmup(_split(argv)):
        newer = RENAMED.get(name, name)
        if name.startswith(QLIP_PREFIX):
            if len(given) != 1:
                raise ValueError(f"--{name} takes one value, got {len(given)}")
            settings[name.removeprefix(QLIP_PREFIX)] = read_value(given[0])
        elif newer in known:
            if name in UNREAD and any(given):
                warnings.append(f"--{name} is not read: {UNREAD[name]}")
            today += [f"--{newer}", *_today(name, given)]
        elif name in known or (name.startswith("no_") and name.removeprefix("no_") in known):
            today += [f"--{name}", *given]
        elif name in SWITCHES:
            switches[name] = not given or _is_on(name, given)
        elif name in DROPPED:
            warnings.append(f"--{name} is not read: {DROPPED[name]}")
        else:
            raise ValueError(f"unknown flag --{name}{_suggest(name, known)}; --help lists all")
    today += [argument for name, is_on in switches.items() if is_on for argument in SWITCHES[name]]
    if settings:
        QLIPConfig.from_dict(settings)
    return today, settings, warnings


def _is_on(name: str, given: Sequence[str]) -> bool:
    """Reads the value of a switch by the words that transformers takes.

    Raises:
        ValueError: it is another word, or there are several.
    """
    if len(given) == 1 and (word := given[0].lower()) in TRUE + FALSE:
        return word in TRUE
    raise ValueError(f"--{name} is {' '.join(given)}; allowed are {', '.join(TRUE)}, {', '.join(FALSE)}")


def _split(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Groups arguments into names of flags and their values; `--flag-name=value` is `flag_name` and a value.

    Raises:
        ValueError: a value in front of the first flag.
    """
    groups: list[tuple[str, list[str]]] = []
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            groups.append((name.replace("-", "_"), [value] if equals else []))
        elif groups:
            groups[-1][1].append(argument)
        else:
            raise ValueError(f"{argument!r} belongs to no flag; every value follows its flag: --data_path FILE")
    return groups


def _choose_warmup(groups: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Leaves out `--warmup_ratio` or `--warmup_steps` where both are given: a number of steps above 0 wins, in any
    order, as it did in transformers before version 5."""
    values = dict(groups)
    if not {"warmup_ratio", "warmup_steps"} <= values.keys():
        return groups
    steps = read_value(values["warmup_steps"][0]) if values["warmup_steps"] else None
    loser = "warmup_ratio" if isinstance(steps, int | float) and steps > 0 else "warmup_steps"
    return [(name, given) for name, given in groups if name != loser]


def _today(name: str, values: list[str]) -> list[str]:
    """Translates the values of an old flag, values that transformers dropped, and a bare `--qlip`.

    Raises:
        ValueError: `--warmup_ratio 1`, which would mean one step today.
    """
    if name == "warmup_ratio" and values:
        ratio = read_value(values[0])
        if not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise ValueError(f"--warmup_ratio is {values[0]}; it must be a number of at least 0 and below 1")
    if name == "qlip" and not values:
        return ["True"]
    if name == "optim":
        return ["adamw_torch" if value == "adamw_hf" else value for value in values]
    return values


def _suggest(name: str, known: set[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1, 0.75)
    return f"; did you mean --{close[0]}?" if close else ""


def read_value(text: str) -> Any:
    """Reads a setting's value: JSON, or Python's None, True and False, or else the text itself."""
    plain = {"none": None, "true": True, "false": False, "null": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def format_help(program: str) -> str:
    """Formats the text of `--help`."""
    lines = [f"usage: {program} --model_name_or_path MODEL --data_path SAMPLES --output_dir DIR [flags]", ""]
    lines.append("Trains LLaVA: the projector, the whole model, or LoRA adapters. docs/TRAINING.md has the recipes.")
    for title, group in GROUPS:
        lines += ["", f"{title}:"]
        for item in fields(group):
            default = "" if item.default in (None, "") else f" ({item.default})"
            lines.append(f"  --{item.name:27} {item.metadata['help']}{default}")
    settings = ", ".join(f"--{QLIP_PREFIX}{item.name}" for item in fields(QLIPConfig))
    others = " ".join(f"--{name}" for name in sorted(transformers_flags()))
    lines += ["", "settings of the quadtree (qlip/config.py):", *_wrap(settings)]
    lines += ["", "transformers' training flags (its TrainingArguments explain them):", *_wrap(others)]
    return "\n".join(lines) + "\n"


def _wrap(text: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, 116, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
